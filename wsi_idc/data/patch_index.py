"""Index of a patch tree: one row per patch, from folder and file names.

The files of a tree are ``PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png``. Each wrong or unusual file
gets a ``FileIssue``. This module checks file names, and the module ``decode`` checks file contents.
"""

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.csv_table import plain_cell
from wsi_idc.core.errors import DataError
from wsi_idc.core.files import regular_file, safe_filename, starts_with
from wsi_idc.data.patch_store import FileIssue, FolderStore, PatchStore, ZipStore, is_zip
from wsi_idc.data.pixels import is_decodable
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

# "idx5" is a constant of the data set. No other module parses file names.
FILE_NAME = re.compile(
    r"(?P<patient>.+)_idx[0-9]+_x(?P<x>[0-9]{1,9})_y(?P<y>[0-9]{1,9})"
    r"_class(?P<label>[01])\.(?i:png)"
)
_CLASS_FOLDERS = ("0", "1")
# Folders that Linux, Windows, macOS and network storage create on a disk.
_SYSTEM_FOLDER = re.compile(r"[.$@#~]|lost\+found$|System Volume Information$|__MACOSX$")
_ISSUE_COLUMNS = ["path", "reason", "detail"]


@dataclass(frozen=True)
class TreeIndex:
    """Index of a patch tree: its patches, and the issues of its files.

    Attributes:
        store: Folder or zip of the patch tree.
        table: One row per patch, sorted by patient, ``y`` and ``x``. The columns are ``path`` (in
            the store), ``patient``, ``x`` and ``y`` (px, from 0) and ``label`` (-1: unknown).
        copies: One row per copy. A copy has the name and the size of a file in ``table``, and is
            read only if this file is damaged. The column ``path`` is the path of the copy. The
            column ``path_kept`` is the path of the file in ``table``.
        rejected: Files that are left out of ``table``.
        flagged: Unusual files in ``table``, and folders with copies.
        num_other_files: Number of ignored files. These files are hidden or not PNG.
    """

    store: PatchStore
    table: pd.DataFrame
    copies: pd.DataFrame
    rejected: tuple[FileIssue, ...]
    flagged: tuple[FileIssue, ...]
    num_other_files: int


def open_patch_store(path: Path) -> PatchStore:
    """Open the folder or zip of a patch tree; raise DataError if the path is neither of them."""
    if path.is_dir():
        return FolderStore(path)
    if is_zip(path):
        return ZipStore(path)
    reason = "neither a folder nor a zip" if path.exists() else "no such folder or file"
    raise DataError(f"{path}: {reason}; give a patch tree, or a zip of a patch tree")


def has_patches(store: PatchStore) -> bool:
    """Return whether at least one file has the file name of a patch."""
    return any(FILE_NAME.fullmatch(path.rpartition("/")[2]) for path in store.list_files().paths)


def index_tree(store: PatchStore, *, patch_px: int) -> TreeIndex:
    """Build the index of a patch tree; raise DataError if the tree has no patch."""
    files = store.list_files()
    table, misnamed = _parse(files.paths, parent_names=store.parent_names)
    rejected = [*files.unreadable, *misnamed]
    table, copies, conflicting = _drop_duplicate_files(table, store=store, patch_px=patch_px)
    table, off_grid = _to_zero_based(table, patch_px=patch_px)
    table, duplicates, relabeled = _drop_duplicate_cells(table)
    if table.empty:
        issue = next(iter((*rejected, *off_grid)), None)
        first = issue and f"{issue.path!r} ({issue.reason}: {issue.detail})"
        found = issue and f"no patch found; the first wrong file is {first}"
        raise DataError(
            f"{store.path}: {found or 'no PNG file found'}; a patch tree holds "
            "PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png"
        )
    folders = copies["path"].str.rsplit("/", n=3).str[0].value_counts().sort_index()
    detail = "copies of patches in other folders; used if the first file is damaged"
    nested = [FileIssue(f"{name}/", "nested copy", f"{n} {detail}") for name, n in folders.items()]
    columns = ["path", "patient", "x", "y", "label"]
    return TreeIndex(
        store=store,
        table=table[columns].sort_values(["patient", "y", "x"], ignore_index=True),
        copies=copies,
        rejected=(*rejected, *conflicting, *off_grid, *duplicates),
        flagged=(*nested, *relabeled),
        num_other_files=files.num_other,
    )


def lost_patients(
    store: PatchStore, issues: Iterable[FileIssue], patients: Collection[str]
) -> list[str]:
    """Return the sorted ids of patients that are in ``issues`` but not in the pack.

    Args:
        store: Folder or zip of the patch tree.
        issues: Files that are left out, and folders that cannot be listed.
        patients: Ids of the patients that are in the pack.
    """
    found = set()
    for issue in issues:
        folder, _, name = issue.path.rpartition("/")  # without a name, the issue is about a folder
        *_, patient_folder, class_folder = [*store.parent_names, *filter(None, folder.split("/"))]
        if name and class_folder in _CLASS_FOLDERS:
            found.add(patient_folder)
        elif match := FILE_NAME.fullmatch(name):
            found.add(match["patient"])
        elif not name:
            parent = folder.rpartition("/")[0] if class_folder in _CLASS_FOLDERS else ""
            paths = [path for path in (folder, parent) if _is_at_patients(store, path, patients)]
            found.update(path.rpartition("/")[2] for path in paths)
    return sorted(found.difference(patients))


def _is_at_patients(store: PatchStore, path: str, patients: Collection[str]) -> bool:
    """Return whether a folder can be the folder of a patient.

    Such a folder is beside the folder of one of ``patients``, and its name is not a name that an
    operating system uses.
    """
    parent, _, name = path.rpartition("/")
    return bool(name and not _SYSTEM_FOLDER.match(name)) and any(
        os.path.isdir(store.path / parent / patient / label)  # noqa: PTH112 - no PermissionError
        for patient in patients
        for label in _CLASS_FOLDERS
    )


def content_key(store: PatchStore, paths: Iterable[str]) -> str:
    """Return a hash of the paths of files and of ``store.stat_key``; the files are not read."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{store.stat_key(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _parse(
    paths: list[str], *, parent_names: tuple[str, str]
) -> tuple[pd.DataFrame, list[FileIssue]]:
    """Parse paths; return a table of the valid paths and an issue for each invalid path."""
    # To save memory (half a million files), numbers are in an array, and each id is stored once.
    kept: list[str] = []
    patients: list[str] = []
    numbers = array("q")
    names: dict[str, int] = {}  # file name to its number in the table
    interned: dict[str, str] = {}
    issues = []
    for path in paths:
        patient_folder, class_folder, name = [*parent_names, *path.rsplit("/", 3)][-3:]
        match = FILE_NAME.fullmatch(name)
        if contradiction := _contradiction(match, patient_folder, class_folder):
            issues.append(FileIssue(path, *contradiction))
            continue
        assert match is not None
        patient, x, y, label = match.groups()
        kept.append(path)
        patients.append(interned.setdefault(patient, patient))
        code = names.setdefault(name, len(names))
        numbers.extend((int(x), int(y), int(label), code, path.count("/")))
    values = np.array(numbers, np.int32).reshape(-1, 5)
    table = pd.DataFrame(values, columns=["x", "y", "label", "name", "depth"])
    texts = {"path": pd.Series(kept, dtype=object), "patient": pd.Series(patients, dtype=object)}
    return table.assign(**texts), issues


def _contradiction(
    match: re.Match[str] | None, patient_folder: str, class_folder: str
) -> tuple[str, str] | None:
    """Return the reason and the detail of the issue of a file name; return None for a valid name.

    A valid name agrees with the folder of the patient and the folder of the class.
    """
    if match is None:
        return "unknown name", "not PATIENT_idx5_xX_yY_classC.png, where C is 0 or 1"
    patient, label = match["patient"], match["label"]
    if patient != patient_folder:
        detail = f"patient {patient} in the name, {patient_folder or '/'} in the folder"
        return "patient contradicts folder", detail
    if label != class_folder:
        detail = f"class {label} in the name, {class_folder} in the folder"
        return "class contradicts folder", detail
    if not _is_safe_id(patient):
        return "unsafe patient id", "not a plain file name"
    return None


@functools.cache
def _is_safe_id(patient: str) -> bool:
    try:
        return bool(safe_filename(patient))
    except DataError:
        return False


def _drop_duplicate_files(
    table: pd.DataFrame, *, store: PatchStore, patch_px: int
) -> tuple[pd.DataFrame, pd.DataFrame, list[FileIssue]]:
    """Keep one file for each file name: the file whose path has the fewest folders.

    The other files of the name are copies. A copy of the same size is not read. A copy of another
    size is left out and becomes an issue. But if only the copy can be decoded, the copy is kept,
    and the first file is left out and becomes the issue.

    Returns:
        Table of the kept files, table of the copies of the same size, and issues.
    """
    kept, pairs = _first_of_each(table.sort_values("depth", kind="stable"), ["name"])
    pairs = pairs[["path", "path_kept"]]
    has_same_size = np.array([store.size(a) == store.size(b) for a, b in _rows(pairs)], bool)
    conflicting = []
    replacements: dict[str, str] = {}  # path of a kept file to the copy that replaces this file
    for path, path_kept in _rows(pairs[~has_same_size]):
        better, worse = replacements.get(path_kept, path_kept), path
        if not is_decodable(store, better, patch_px) and is_decodable(store, path, patch_px):
            better, worse = path, better
            kept.loc[kept["path"] == worse, "path"] = better
            replacements[path_kept] = better
        conflicting.append(FileIssue(worse, "differs from its copy", f"{better} is kept"))
    return kept, pairs[has_same_size], conflicting


def readable_duplicates(
    damaged: Collection[str], copies: pd.DataFrame, *, store: PatchStore, patch_px: int
) -> dict[str, str]:
    """Return a dict from damaged file to its first copy that can be decoded.

    The dict lacks a damaged file if none of its copies can be decoded.
    """
    result: dict[str, str] = {}
    if damaged:
        for path, path_kept in _rows(copies[copies["path_kept"].isin(damaged)]):
            if path_kept not in result and is_decodable(store, path, patch_px):
                result[path_kept] = path
    return result


def _to_zero_based(table: pd.DataFrame, *, patch_px: int) -> tuple[pd.DataFrame, list[FileIssue]]:
    """Subtract the origin of each patient from x and y; drop patches that are not on the grid.

    The Kaggle data set counts x and y from 1. In other data sets, the grid of each patient may
    start anywhere. On each axis, the origin of a patient is the most frequent remainder of the
    coordinates modulo ``patch_px``. If two remainders are equally frequent in the patient, the
    origin is the remainder that is more frequent in the complete tree. A patch is on the grid if
    its new x and y are multiples of ``patch_px``.
    """
    if table.empty:
        return table, []
    table = table.copy()
    origin = {axis: _origins(table["patient"], table[axis] % patch_px) for axis in ("x", "y")}
    for axis, first in origin.items():
        table[axis] -= first
    is_aligned = (table["x"] % patch_px == 0) & (table["y"] % patch_px == 0)
    end_px = MAX_CELLS_PER_SIDE * patch_px
    is_near = (table["x"] < end_px) & (table["y"] < end_px)
    rule = f"most patches of the patient have x = %d and y = %d modulo {patch_px}"
    off_grid = pd.DataFrame({"path": table["path"], **origin})[~is_aligned]
    issues = [FileIssue(path, "off the grid", rule % (x, y)) for path, x, y in _rows(off_grid)]
    issues += [
        FileIssue(path, "too far out", f"no slide is {end_px} px wide")
        for path in table[is_aligned & ~is_near]["path"]
    ]
    return table[is_aligned & is_near], issues


def _origins(patient: pd.Series, remainder: pd.Series) -> pd.Series:
    """Return, for each patch, the most frequent ``remainder`` of its patient: the origin."""
    table = pd.DataFrame({"patient": patient, "remainder": remainder})
    table["in_tree"] = table.groupby("remainder")["patient"].transform("size")
    table["num"] = table.groupby(["patient", "remainder"])["in_tree"].transform("size")
    table = table.sort_values(["num", "in_tree", "remainder"], ascending=[False, False, True])
    return patient.map(table.drop_duplicates("patient").set_index("patient")["remainder"])


def _drop_duplicate_cells(
    table: pd.DataFrame,
) -> tuple[pd.DataFrame, list[FileIssue], list[FileIssue]]:
    """Keep the first patch of each cell; its label becomes -1 if another patch has another label.

    Returns:
        Table of the kept patches, issues of the other patches, and issues of changed labels.
    """
    kept, pairs = _first_of_each(table.sort_index(), ["patient", "x", "y"])
    rejected = [
        FileIssue(path, "duplicate coordinate", f"{path_kept} is kept")
        for path, path_kept in _rows(pairs[["path", "path_kept"]])
    ]
    disputed = pairs[pairs["label"] != pairs["label_kept"]].drop_duplicates("path_kept")
    kept.loc[kept["path"].isin(disputed["path_kept"]), "label"] = -1
    flagged = [
        FileIssue(path_kept, "label unknown", f"{path} in the same cell has another label")
        for path, path_kept in _rows(disputed[["path", "path_kept"]])
    ]
    return kept, rejected, flagged


def _first_of_each(table: pd.DataFrame, key: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the first row of each value of the columns ``key``, and all pairs with later rows.

    A pair is one row with the columns of a later row and the columns of the first row; the names of
    the second group of columns end with "_kept".
    """
    repeated = table[table.duplicated(key)]
    kept = table.drop(repeated.index)
    return kept, repeated.merge(kept, on=key, suffixes=("", "_kept"))


def _rows(table: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    return table.itertuples(index=False, name=None)


def issue_table(issues: Iterable[FileIssue]) -> pd.DataFrame:
    """Return a table of issues with the columns path, reason and detail, sorted by path."""
    rows = sorted((issue.path, issue.reason, issue.detail) for issue in issues)
    return pd.DataFrame(rows, columns=_ISSUE_COLUMNS, dtype=object)


def is_issue_table(path: Path) -> bool:
    """Return whether a file is a CSV file with the header of an issue table."""
    header = ",".join(_ISSUE_COLUMNS)
    return starts_with(path, f"{header}\n".encode(), f"{header}\r".encode())


def read_issues(path: Path) -> list[FileIssue]:
    """Read the issues in a CSV file; return an empty list if the file is not an issue table."""
    try:
        table = pd.read_csv(regular_file(path), dtype=str, keep_default_na=False)
        return [FileIssue(*map(plain_cell, row)) for row in _rows(table[_ISSUE_COLUMNS])]
    except (OSError, ValueError, KeyError):
        return []
