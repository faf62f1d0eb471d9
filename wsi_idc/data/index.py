"""The index of a patch tree: one row a patch, from folder and file names alone.

A tree is ``PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png``. What is wrong or odd about a file is a
problem with a name and a reason; this module finds those that the names tell, ``decode`` those
that the bytes tell.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.errors import DataError
from wsi_idc.files import plain_name
from wsi_idc.maps.grid import MAX_CELLS_PER_SIDE

# The one place that reads meaning from a file name. "idx5" is a constant of the data set.
FILE_NAME = (
    r"^(?P<patient>.+)_idx[0-9]+_x(?P<x>[0-9]{1,9})_y(?P<y>[0-9]{1,9})"
    r"_class(?P<label>[01])\.(?i:png)$"
)


@dataclass(frozen=True)
class Problem:
    """One file (or folder) that was left out, or kept although something is odd about it."""

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class TreeIndex:
    """What a patch tree holds.

    Attributes:
        root: The tree's folder.
        table: One row a patch to read, sorted by patient, row, column, with columns ``path``
            (below root), ``patient``, ``x``, ``y`` (px, 0-based), ``label`` (-1 unknown).
        rejected: Files left out.
        flagged: Files kept, and folders left out, that a user should know of.
        num_other_files: Files that are not PNG, or hidden, and were not looked at.
    """

    root: Path
    table: pd.DataFrame
    rejected: tuple[Problem, ...]
    flagged: tuple[Problem, ...]
    num_other_files: int


@dataclass
class Listing:
    """The files of a patch tree, not yet understood.

    Attributes:
        paths: The PNG files as sorted paths below the root.
        num_other: Count of other or hidden files.
        unreadable: Folders that could not be listed.
    """

    paths: list[str] = field(default_factory=list)
    num_other: int = 0
    unreadable: list[Problem] = field(default_factory=list)


def index_tree(root: Path, *, patch_px: int) -> TreeIndex:
    """Read the index of the patch tree at ``root``.

    Raises:
        DataError: There is no folder, or no patch in it.
    """
    listing = list_tree(root)
    names = _parse(listing.paths, root=root)
    rejected = listing.unreadable + _contradictions(names)
    good = names[names["ok"]]
    good, nested, conflicting = _drop_nested_copies(good, root=root)
    good, off_grid = _to_zero_based(good, patch_px=patch_px)
    good, duplicates, relabelled = _drop_duplicate_cells(good)
    if good.empty:
        first = next((f"{p.path!r} ({p.reason})" for p in (*rejected, *off_grid)), "no PNG file")
        raise DataError(
            f"{root}: no patch found, but {first}; a patch tree holds "
            "PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png"
        )
    columns = ["path", "patient", "x", "y", "label"]
    return TreeIndex(
        root=root,
        table=good.sort_values(["patient", "y", "x"])[columns].reset_index(drop=True),
        rejected=(*rejected, *conflicting, *off_grid, *duplicates),
        flagged=(*nested, *relabelled),
        num_other_files=listing.num_other,
    )


def list_tree(root: Path) -> Listing:
    """List the files below ``root``, links followed, each folder once.

    Raises:
        DataError: There is no such folder.
    """
    if root.is_file():
        raise DataError(f"{root}: is a file; give the folder of a patch tree, unpacked")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a patch tree or a pack")
    listing = Listing()
    seen: set[str] = set()
    # Level by level and links last: a folder reached twice is read under its own name, and a link
    # that leads back up ends there.
    level = [""]
    while level:
        below: list[tuple[bool, str]] = []
        for folder in level:
            real = os.path.realpath(root / folder)
            if real not in seen:
                seen.add(real)
                below += _list_folder(root, folder, listing)
        level = [folder for _, folder in sorted(below)]
    listing.paths.sort()
    return listing


def _list_folder(root: Path, folder: str, listing: Listing) -> list[tuple[bool, str]]:
    """Add the files of one folder; return its folders, each with whether it is a link."""
    try:
        with os.scandir(root / folder) as entries:
            found = [(entry.is_dir(), entry.is_symlink(), entry.name) for entry in entries]
    except OSError as error:
        listing.unreadable.append(Problem(f"{folder}/", "unreadable", str(error.strerror)))
        return []
    start = f"{folder}/" if folder else ""
    files = [name for is_folder, _, name in found if not is_folder]
    # macOS puts a hidden "._NAME.png" that is no PNG beside each file.
    pngs = [name for name in files if name.lower().endswith(".png") and name[0] != "."]
    listing.num_other += len(files) - len(pngs)
    listing.paths += [start + name for name in pngs]
    return [(is_link, start + name) for is_folder, is_link, name in found if is_folder]


def tree_key(root: Path, paths: Iterable[str]) -> str:
    """Return a key of the tree's present content, from names, sizes and times of its files."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = (root / path).stat()
            state = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:
            state = f"{path}\0unreadable\n"
        digest.update(state.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _parse(paths: list[str], *, root: Path) -> pd.DataFrame:
    """Read file and folder names into a table with ``ok`` where they make sense together."""
    # The tree may be given by one patient's folder or class folder too.
    base = root.resolve()
    above = ("", base.parent.name, base.name)
    parts = [(*above, *path.split("/")) for path in paths]
    table = pd.DataFrame(
        {
            "path": paths,
            "name": [part[-1] for part in parts],
            "class_folder": [part[-2] for part in parts],
            "patient_folder": [part[-3] for part in parts],
            "depth": [len(part) for part in parts],
        },
        dtype=object,
    )
    table = table.join(table["name"].astype(object).str.extract(FILE_NAME))
    for column in ("x", "y", "label"):
        table[column] = pd.to_numeric(table[column], errors="coerce").fillna(-1).astype(np.int64)
    same_patient = table["patient"] == table["patient_folder"]
    same_class = table["label"].astype(str) == table["class_folder"]
    plain = {patient for patient in table["patient"].unique() if _is_plain_id(patient)}
    table["ok"] = same_patient & same_class & table["patient"].isin(plain)
    return table


def _is_plain_id(patient: object) -> bool:
    try:
        return isinstance(patient, str) and bool(plain_name(patient))
    except DataError:
        return False


def _contradictions(table: pd.DataFrame) -> list[Problem]:
    """Say of each file that is not ``ok`` how its name and folders disagree."""
    problems = []
    for row in table[~table["ok"]].to_dict("records"):
        if not isinstance(row["patient"], str):
            reason, detail = "unknown name", "not PATIENT_idx5_xX_yY_classC.png"
        elif row["patient"] != row["patient_folder"]:
            reason = "patient contradicts folder"
            detail = f"name says {row['patient']}, folder says {row['patient_folder'] or '/'}"
        elif str(row["label"]) != row["class_folder"]:
            reason = "class contradicts folder"
            detail = f"name says class {row['label']}, folder says {row['class_folder']}"
        else:
            reason, detail = "unsafe patient id", "not a plain file name"
        problems.append(Problem(row["path"], reason, detail))
    return problems


def _drop_nested_copies(
    table: pd.DataFrame, *, root: Path
) -> tuple[pd.DataFrame, list[Problem], list[Problem]]:
    """Keep the shallowest of the files with equal PATIENT/CLASS/NAME.

    Returns:
        The table without copies, a note for each folder of copies, and the copies that differ
        in size from what they copy.
    """
    table = table.sort_values(["depth", "path"])
    key = ["patient", "label", "name"]
    copies = table[table.duplicated(key)]
    kept = table.drop(copies.index)
    if copies.empty:
        return kept, [], []
    pairs = copies.merge(kept[[*key, "path"]], on=key, suffixes=("", "_kept"))
    sizes = pairs[["path", "path_kept"]].map(lambda path: _size(root / path))
    same = sizes["path"] == sizes["path_kept"]
    folders = pairs[same]["path"].str.rsplit("/", n=3).str[0]
    nested = [
        Problem(f"{folder}/", "nested copy", f"{count} patches that stand above it too, left out")
        for folder, count in folders.value_counts().sort_index().items()
    ]
    conflicting = [
        Problem(path, "differs from its copy", f"{path_kept} is kept")
        for path, path_kept in _rows(pairs[~same], "path", "path_kept")
    ]
    return kept, nested, conflicting


def _rows(table: pd.DataFrame, *columns: str) -> Iterable[tuple[str, ...]]:
    return zip(*(table[column] for column in columns), strict=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _to_zero_based(table: pd.DataFrame, *, patch_px: int) -> tuple[pd.DataFrame, list[Problem]]:
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
    problems = [Problem(path, "off the grid", rule) for path in table[~aligned]["path"]]
    problems += [
        Problem(path, "too far out", f"no slide is {end_px} px wide")
        for path in table[aligned & ~near]["path"]
    ]
    return table[aligned & near], problems


def _drop_duplicate_cells(
    table: pd.DataFrame,
) -> tuple[pd.DataFrame, list[Problem], list[Problem]]:
    """Keep one patch a place, the first by path; its label is unknown where they disagree."""
    table = table.sort_values("path")
    key = ["patient", "x", "y"]
    repeated = table[table.duplicated(key)]
    if repeated.empty:
        return table, [], []
    kept = table.drop(repeated.index)
    pairs = repeated.merge(kept[[*key, "path", "label"]], on=key, suffixes=("", "_kept"))
    rejected = [
        Problem(path, "duplicate coordinate", f"{path_kept} is kept")
        for path, path_kept in _rows(pairs, "path", "path_kept")
    ]
    disputed = pairs[pairs["label"] != pairs["label_kept"]].drop_duplicates("path_kept")
    kept.loc[kept["path"].isin(disputed["path_kept"]), "label"] = -1
    flagged = [
        Problem(path_kept, "label unknown", f"{path} at the same place says otherwise")
        for path, path_kept in _rows(disputed, "path", "path_kept")
    ]
    return kept, rejected, flagged


def problem_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """Return problems as a table with columns path, reason, detail, sorted by path."""
    rows = sorted((p.path, p.reason, p.detail) for p in problems)
    return pd.DataFrame(rows, columns=["path", "reason", "detail"], dtype=object)
