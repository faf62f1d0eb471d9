"""The index of a patch tree: one row a patch, from folder and file names alone.

A tree is ``PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png``. What is wrong or odd about a file is a
problem with a name and a reason; this module finds those that the names tell, ``decode`` those
that the bytes tell.
"""

import functools
import hashlib
import re
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import safe_filename
from wsi_idc.data.patch_store import FileIssue, FolderStore, PatchStore, UnreadablePatchError
from wsi_idc.data.png import decode_png
from wsi_idc.data.zip_store import ZipStore, is_zip
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE


def drop_duplicate_files(
    table: pd.DataFrame, *, origin: PatchStore, patch_px: int
) -> tuple[pd.DataFrame, pd.DataFrame, list[FileIssue]]:
    """Keep the shallowest of the files of one name; of several sizes, the first whole one.

    Args:
        table: One row a file, with columns ``path``, ``name`` (equal for files of one
            PATIENT/CLASS/NAME) and ``depth``.
        origin: Where they lie.
        patch_px: Largest side of a patch, in px.

    Returns:
        The table without copies; the copies of equal size, which nobody has read, with columns
        ``path`` and ``path_kept``; and the copies that differ in size from what they copy.
    """
    table = table.sort_values("depth", kind="stable")
    copies = table.loc[table.duplicated("name"), ["path", "name"]]
    kept = table.drop(copies.index)
    pairs = copies.merge(kept[["name", "path"]], on="name", suffixes=("", "_kept"))
    pairs = pairs[["path", "path_kept"]]
    same = np.array(
        [origin.size(path) == origin.size(first) for path, first in rows_of(pairs, *pairs)], bool
    )
    conflicting = []
    now: dict[str, str] = {}  # what stands in for a patch, where there are several copies of it
    for path, path_kept in rows_of(pairs[~same], *pairs):
        held = now.get(path_kept, path_kept)
        better, worse = held, path
        if not is_decodable(origin, held, patch_px) and is_decodable(origin, path, patch_px):
            better, worse = path, held
            kept.loc[kept["path"] == held, "path"] = path
            now[path_kept] = path
        conflicting.append(FileIssue(worse, "differs from its copy", f"{better} is kept"))
    return kept, pairs[same], conflicting


def duplicate_notes(copies: pd.DataFrame) -> list[FileIssue]:
    """Return a note for each folder of copies."""
    folders = copies["path"].str.rsplit("/", n=3).str[0]
    what = "patches that stand above it too, taken only where those are damaged"
    return [
        FileIssue(f"{folder}/", "nested copy", f"{count} {what}")
        for folder, count in folders.value_counts().sort_index().items()
    ]


def readable_duplicates(
    damaged: Collection[str], copies: pd.DataFrame, *, origin: PatchStore, patch_px: int
) -> dict[str, str]:
    """Return for files that cannot be decoded the first of their copies that can, if any."""
    found: dict[str, str] = {}
    if damaged:
        for path, path_kept in rows_of(copies[copies["path_kept"].isin(damaged)], *copies):
            if path_kept not in found and is_decodable(origin, path, patch_px):
                found[path_kept] = path
    return found


def is_decodable(origin: PatchStore, path: str, patch_px: int) -> bool:
    """Return whether a file can be read and decoded."""
    try:
        decode_png(origin.read(path)[0], patch_px=patch_px)
    except UnreadablePatchError:
        return False
    return True


def rows_of(table: pd.DataFrame, *columns: str) -> Iterable[tuple[str, ...]]:
    """Iterate over the rows of some columns."""
    return zip(*(table[column] for column in columns), strict=True)


# The one place that reads meaning from a file name. "idx5" is a constant of the data set.
FILE_NAME = re.compile(
    r"(?P<patient>.+)_idx[0-9]+_x(?P<x>[0-9]{1,9})_y(?P<y>[0-9]{1,9})"
    r"_class(?P<label>[01])\.(?i:png)"
)
_PROBLEM_COLUMNS = ["path", "reason", "detail"]


@dataclass(frozen=True)
class TreeIndex:
    """What a patch tree holds.

    Attributes:
        origin: The folder or zip.
        table: One row a patch to read, sorted by patient, row, column, with columns ``path``
            (below the top), ``patient``, ``x``, ``y`` (px, 0-based), ``label`` (-1 unknown).
        copies: Files of PATIENT/CLASS/NAME and size as one of the table, left out unread, with
            columns ``path`` and ``path_kept``, the one of the table.
        rejected: Files left out.
        flagged: Files kept, and folders left out, that a user should know of.
        num_other_files: Files that are not PNG, or hidden, and were not looked at.
    """

    origin: PatchStore
    table: pd.DataFrame
    copies: pd.DataFrame
    rejected: tuple[FileIssue, ...]
    flagged: tuple[FileIssue, ...]
    num_other_files: int


def open_patch_store(path: Path) -> PatchStore:
    """Open the folder or zip of a patch tree.

    Raises:
        DataError: There is none, or the zip cannot be trusted.
    """
    if path.is_dir():
        return FolderStore(path)
    if is_zip(path):
        return ZipStore(path)
    if path.exists():
        raise DataError(f"{path}: neither a folder nor a zip; give a patch tree, or a zip of one")
    raise DataError(f"{path}: no such folder or file; give a patch tree, or a zip of one")


def holds_patches(origin: PatchStore) -> bool:
    """Return whether the name of any file is that of a patch."""
    return any(FILE_NAME.fullmatch(path.rpartition("/")[2]) for path in origin.listing().paths)


def index_tree(origin: PatchStore, *, patch_px: int) -> TreeIndex:
    """Read the index of a patch tree.

    Raises:
        DataError: There is no patch in it.
    """
    listing = origin.listing()
    good, contradictions = _parse(listing.paths, above=origin.above)
    rejected = [*listing.unreadable, *contradictions]
    good, copies, conflicting = drop_duplicate_files(good, origin=origin, patch_px=patch_px)
    good, off_grid = _to_zero_based(good, patch_px=patch_px)
    good, duplicates, relabelled = _drop_duplicate_cells(good)
    if good.empty:
        first = [f"{p.path!r} ({p.reason})" for p in (*rejected, *off_grid)][:1]
        found = f"no patch found, but {first[0]}" if first else "no PNG file found"
        raise DataError(
            f"{origin.path}: {found}; a patch tree holds "
            "PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png"
        )
    columns = ["path", "patient", "x", "y", "label"]
    return TreeIndex(
        origin=origin,
        table=good[columns].sort_values(["patient", "y", "x"], ignore_index=True),
        copies=copies,
        rejected=(*rejected, *conflicting, *off_grid, *duplicates),
        flagged=(*duplicate_notes(copies), *relabelled),
        num_other_files=listing.num_other,
    )


def content_key(origin: PatchStore, paths: Iterable[str]) -> str:
    """Return a key of the files as they are now, from names and states, without reading them."""
    digest = hashlib.sha256()
    for path in paths:
        line = f"{path}\0{origin.state(path)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _parse(paths: list[str], *, above: tuple[str, str]) -> tuple[pd.DataFrame, list[FileIssue]]:
    """Read file and folder names.

    Returns:
        One row a file whose names make sense, in the order of ``paths``, with columns path,
        patient, x, y, label, ``name`` (equal for files of equal name) and ``depth``; and a problem
        for each other file.
    """
    # There may be half a million files: numbers in arrays, and each name once.
    kept: list[str] = []
    patients: list[str] = []
    numbers = array("q")
    names: dict[str, int] = {}
    known: dict[str, str] = {}
    problems = []
    for path in paths:
        folders = path.rsplit("/", 3)
        patient_folder, class_folder, name = [*above, *folders][-3:]
        found = FILE_NAME.fullmatch(name)
        if why := _contradiction(found, patient_folder, class_folder):
            problems.append(FileIssue(path, *why))
            continue
        assert found is not None
        patient, x, y, label = found.groups()
        kept.append(path)
        patients.append(known.setdefault(patient, patient))
        code = names.setdefault(name, len(names))
        numbers.extend((int(x), int(y), int(label), code, path.count("/")))
    table = pd.DataFrame(
        np.array(numbers, np.int32).reshape(-1, 5), columns=["x", "y", "label", "name", "depth"]
    )
    table.insert(0, "path", pd.Series(kept, dtype=object))
    table.insert(1, "patient", pd.Series(patients, dtype=object))
    return table, problems


def _contradiction(
    found: re.Match[str] | None, patient_folder: str, class_folder: str
) -> tuple[str, str] | None:
    """Return reason and detail of how a file's name and folders disagree, None if they do not."""
    if found is None:
        return "unknown name", "not PATIENT_idx5_xX_yY_classC.png"
    patient, label = found["patient"], found["label"]
    if patient != patient_folder:
        detail = f"name says {patient}, folder says {patient_folder or '/'}"
        return "patient contradicts folder", detail
    if label != class_folder:
        return "class contradicts folder", f"name says class {label}, folder says {class_folder}"
    if not _is_plain_id(patient):
        return "unsafe patient id", "not a plain file name"
    return None


@functools.cache
def _is_plain_id(patient: str) -> bool:
    try:
        return bool(safe_filename(patient))
    except DataError:
        return False


def _to_zero_based(table: pd.DataFrame, *, patch_px: int) -> tuple[pd.DataFrame, list[FileIssue]]:
    """Shift x and y so that they are multiples of ``patch_px``, and drop those that are not.

    The data set counts from 1; another may count from 0. What most patches do is the rule.
    """
    if table.empty:
        return table, []
    table = table.copy()
    origin = {axis: int((table[axis] % patch_px).mode()[0]) for axis in ("x", "y")}
    for axis, first in origin.items():
        table[axis] -= first
    aligned = (table["x"] % patch_px == 0) & (table["y"] % patch_px == 0)
    end_px = MAX_CELLS_PER_SIDE * patch_px
    near = (table["x"] < end_px) & (table["y"] < end_px)
    rule = f"x = {origin['x']} and y = {origin['y']} modulo {patch_px} in this tree"
    problems = [FileIssue(path, "off the grid", rule) for path in table[~aligned]["path"]]
    problems += [
        FileIssue(path, "too far out", f"no slide is {end_px} px wide")
        for path in table[aligned & ~near]["path"]
    ]
    return table[aligned & near], problems


def _drop_duplicate_cells(
    table: pd.DataFrame,
) -> tuple[pd.DataFrame, list[FileIssue], list[FileIssue]]:
    """Keep one patch a place, the first by path; its label is unknown where they disagree."""
    table = table.sort_index()
    key = ["patient", "x", "y"]
    repeated = table[table.duplicated(key)]
    if repeated.empty:
        return table, [], []
    kept = table.drop(repeated.index)
    pairs = repeated.merge(kept[[*key, "path", "label"]], on=key, suffixes=("", "_kept"))
    rejected = [
        FileIssue(path, "duplicate coordinate", f"{path_kept} is kept")
        for path, path_kept in rows_of(pairs, "path", "path_kept")
    ]
    disputed = pairs[pairs["label"] != pairs["label_kept"]].drop_duplicates("path_kept")
    kept.loc[kept["path"].isin(disputed["path_kept"]), "label"] = -1
    flagged = [
        FileIssue(path_kept, "label unknown", f"{path} at the same place says otherwise")
        for path, path_kept in rows_of(disputed, "path", "path_kept")
    ]
    return kept, rejected, flagged


def problem_table(problems: Iterable[FileIssue]) -> pd.DataFrame:
    """Return problems as a table with columns path, reason, detail, sorted by path."""
    rows = sorted((p.path, p.reason, p.detail) for p in problems)
    return pd.DataFrame(rows, columns=_PROBLEM_COLUMNS, dtype=object)


def is_problem_table(path: Path) -> bool:
    """Return whether a file begins as a table of problems that was written as CSV."""
    header = ",".join(_PROBLEM_COLUMNS).encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header) + 1).rstrip() == header


def read_problems(path: Path) -> list[FileIssue]:
    """Return the problems of a table that was written, none where it is not there or no such."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return [FileIssue(*row) for row in rows_of(table, *_PROBLEM_COLUMNS)]
    except (OSError, ValueError, KeyError):
        return []
