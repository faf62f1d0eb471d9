"""Files of one PATIENT/CLASS/NAME in several places of a tree: which of them is read.

The archive at Kaggle holds everything twice.
"""

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd

from wsi_idc.data.patch_store import Origin, Problem, UnreadablePatchError
from wsi_idc.data.png import decode_png


def drop_copies(
    table: pd.DataFrame, *, origin: Origin, patch_px: int
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
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
        if not is_whole(origin, held, patch_px) and is_whole(origin, path, patch_px):
            better, worse = path, held
            kept.loc[kept["path"] == held, "path"] = path
            now[path_kept] = path
        conflicting.append(Problem(worse, "differs from its copy", f"{better} is kept"))
    return kept, pairs[same], conflicting


def copy_notes(copies: pd.DataFrame) -> list[Problem]:
    """Return a note for each folder of copies."""
    folders = copies["path"].str.rsplit("/", n=3).str[0]
    what = "patches that stand above it too, taken only where those are damaged"
    return [
        Problem(f"{folder}/", "nested copy", f"{count} {what}")
        for folder, count in folders.value_counts().sort_index().items()
    ]


def whole_copies(
    damaged: Collection[str], copies: pd.DataFrame, *, origin: Origin, patch_px: int
) -> dict[str, str]:
    """Return for files that cannot be decoded the first of their copies that can, if any."""
    found: dict[str, str] = {}
    if damaged:
        for path, path_kept in rows_of(copies[copies["path_kept"].isin(damaged)], *copies):
            if path_kept not in found and is_whole(origin, path, patch_px):
                found[path_kept] = path
    return found


def is_whole(origin: Origin, path: str, patch_px: int) -> bool:
    """Return whether a file can be read and decoded."""
    try:
        decode_png(origin.read(path)[0], patch_px=patch_px)
    except UnreadablePatchError:
        return False
    return True


def rows_of(table: pd.DataFrame, *columns: str) -> Iterable[tuple[str, ...]]:
    """Iterate over the rows of some columns."""
    return zip(*(table[column] for column in columns), strict=True)
