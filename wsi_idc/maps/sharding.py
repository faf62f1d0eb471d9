"""Split patients and slides into parts of about equal size."""

import heapq
from collections.abc import Mapping, Sequence

from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.slides.manifest import ManifestRow

_MAX_SHARDS = 100_000


def sizes_of_patients(pack: Pack, patients: Sequence[str]) -> dict[str, int]:
    """Return the number of patches of each patient."""
    return {patient: len(pack.rows_of(patient)) for patient in patients}


def sizes_of_slides(rows: Sequence[ManifestRow]) -> dict[str, int]:
    """Return the bytes of each slide, by the name of its map."""
    return {row.patient: row.slide.stat().st_size if row.slide.is_file() else 0 for row in rows}


def shard(sizes: Mapping[str, int], index: int, count: int) -> list[str]:
    """Return the names in the ``index``-th (from 1) of ``count`` parts of about equal size.

    The largest first, each to the part that has least: no part depends on who computes it. The
    order is that of ``sizes``.
    """
    part_of = assign_shards(sizes, count)
    return [name for name in sizes if part_of[name] == index - 1]


def assign_shards(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the part, from 0, that each name is in."""
    loads = [(0, part) for part in range(count)]  # a heap
    part_of = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], part))
        part_of[name] = part
    return part_of


def parse_shard(text: str) -> tuple[int, int]:
    """Return the two numbers of "2/8".

    Raises:
        DataError: It is something else.
    """
    first, _, second = text.partition("/")
    longest = len(str(_MAX_SHARDS))  # of what int() takes
    are_numbers = all(
        part.isascii() and part.isdigit() and len(part) <= longest for part in (first, second)
    )
    if not are_numbers or not 1 <= int(first) <= int(second) <= _MAX_SHARDS:
        raise DataError(f"shard {text!r} is not I/N with I from 1 to N, such as 2/8")
    return int(first), int(second)
