"""Plan of a run: shards of about equal size, and the state and size of each map."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.slides.manifest import ManifestRow

TO_DO, DONE = "to do", "done"
_MAX_SHARDS = 100_000


@dataclass(frozen=True)
class PlannedMap:
    """State and size of a map before the run.

    Attributes:
        patient: Id.
        state: "to do", "done", or the reason why the map cannot be built.
        num_patches: Number of patches.
        disk_mb: Size of the file, estimated.
        memory_mb: Memory while the map is built, without the model, estimated.
    """

    patient: str
    state: str
    num_patches: int = 0
    disk_mb: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_mappable(self) -> bool:
        """True if the map exists or can be built."""
        return self.state in (TO_DO, DONE)


def sizes_of_patients(pack: Pack, patients: Sequence[str]) -> dict[str, int]:
    """Return the number of patches of each patient."""
    return {patient: len(pack.rows_of(patient)) for patient in patients}


def sizes_of_slides(rows: Sequence[ManifestRow]) -> dict[str, int]:
    """Return the file size of each slide in bytes, by patient; 0 for a missing file."""
    return {row.patient: row.slide.stat().st_size if row.slide.is_file() else 0 for row in rows}


def shard(sizes: Mapping[str, int], index: int, count: int) -> list[str]:
    """Return the names in the ``index``-th (from 1) of ``count`` shards, in the order of ``sizes``.

    The result is the same on every machine.
    """
    shard_of = assign_shards(sizes, count)
    return [name for name in sizes if shard_of[name] == index - 1]


def assign_shards(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the shard of each name, from 0: the largest first, each to the smallest shard."""
    loads = [(0, index) for index in range(count)]  # a heap
    shard_of = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, index = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], index))
        shard_of[name] = index
    return shard_of


def parse_shard(text: str) -> tuple[int, int]:
    """Return index and count of a shard that is written as "2/8"."""
    index, _, count = text.partition("/")
    max_digits = len(str(_MAX_SHARDS))  # int() is slow for long texts
    are_numbers = all(
        part.isascii() and part.isdigit() and len(part) <= max_digits for part in (index, count)
    )
    if not are_numbers or not 1 <= int(index) <= int(count) <= _MAX_SHARDS:
        raise DataError(f"shard {text!r} is not I/N with I from 1 to N, such as 2/8")
    return int(index), int(count)
