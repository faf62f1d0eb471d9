"""Plan maps before they are built: shards of about equal size, state and size of each map."""

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
    """State and estimated size of a map before it is built.

    Attributes:
        patient: Patient id.
        state: "to do", "done", or the reason why the map cannot be built.
        num_patches: Number of patches of the map.
        disk_mb: Estimated size of the map file in MB.
        memory_mb: Estimated memory for building the map in MB, without the memory of the model.
    """

    patient: str
    state: str
    num_patches: int = 0
    disk_mb: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_mappable(self) -> bool:
        """True if the map is up to date or can be built."""
        return self.state in (TO_DO, DONE)


def sizes_of_patients(pack: Pack, patients: Sequence[str]) -> dict[str, int]:
    """Return a dict from patient id to number of patches."""
    return {patient: len(pack.rows_of(patient)) for patient in patients}


def sizes_of_slides(rows: Sequence[ManifestRow]) -> dict[str, int]:
    """Return a dict from patient id to size of the slide file in bytes; 0 if it is missing."""
    return {row.patient: row.slide.stat().st_size if row.slide.is_file() else 0 for row in rows}


def shard(sizes: Mapping[str, int], index: int, count: int) -> list[str]:
    """Divide names into ``count`` shards of similar size; return shard ``index``, counted from 1.

    The names are in the order of ``sizes``. The result is the same on every machine.
    """
    shard_of = assign_shards(sizes, count)
    return [name for name in sizes if shard_of[name] == index - 1]


def assign_shards(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return a dict from name to shard number, counted from 0.

    From the largest to the smallest size, each name goes to the shard with the smallest total size.
    """
    loads = [(0, index) for index in range(count)]  # a heap of total size and number of each shard
    shard_of = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, index = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], index))
        shard_of[name] = index
    return shard_of


def parse_shard(text: str) -> tuple[int, int]:
    """Return the number of a shard and the number of all shards from a text such as "2/8"."""
    index, _, count = text.partition("/")
    max_digits = len(str(_MAX_SHARDS))  # long texts are not numbers of shards, and int() is slow
    are_numbers = all(
        part.isascii() and part.isdigit() and len(part) <= max_digits for part in (index, count)
    )
    if not are_numbers or not 1 <= int(index) <= int(count) <= _MAX_SHARDS:
        raise DataError(f"shard {text!r} is not I/N with I from 1 to N, such as 2/8")
    return int(index), int(count)
