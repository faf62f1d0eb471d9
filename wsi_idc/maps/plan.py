"""Plan maps before they are built: the state and size of each map, and shards of similar size."""

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import DataError, MapError
from wsi_idc.data.pack import Pack
from wsi_idc.maps.map_reader import has_patient_format, map_path, read_provenance
from wsi_idc.slides.manifest import ManifestRow

TO_DO, DONE = "to do", "done"
_MAX_SHARDS = 100_000
_SHARD = re.compile("([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class PlannedMap:
    """State and estimated size of a map before it is built.

    Attributes:
        patient: Patient id.
        state: "to do", "done", or the reason why the map cannot be built.
        num_patches: Number of patches of the map.
        disk_mb: Estimated size of the map file in MB.
        memory_mb: Estimated memory in MB for building the map, without the memory of the model.
        slide_name: Name of the slide; empty for the only slide of the patient.
    """

    patient: str
    state: str
    num_patches: int = 0
    disk_mb: float = 0.0
    memory_mb: float = 0.0
    slide_name: str = ""

    @property
    def map_name(self) -> str:
        """Name of the map: PATIENT, or PATIENT/SLIDE."""
        return f"{self.patient}/{self.slide_name}" if self.slide_name else self.patient

    @property
    def is_mappable(self) -> bool:
        """True if the map is up to date or can be built."""
        return self.state in (TO_DO, DONE)


def map_state(
    folder: Path, name: str, cache_key: Mapping[str, Any], *, data: str, overwrite: bool
) -> str:
    """Decide whether a map must be built, is up to date, or cannot be built.

    An existing map of another checkpoint, other settings or other data is replaced only with
    ``overwrite``. The same is true if a map would replace a patient file, or if a patient file
    would replace a map.

    Args:
        folder: Folder of the maps.
        name: Name of the map; the file may be missing.
        cache_key: Values that determine the content of the map; see ``MapBuilder.cache_key``.
        data: Path of the pack or slide.
        overwrite: Whether to replace any existing file.

    Returns:
        "to do", "done", or the reason why the map cannot be built.
    """
    path, patient_path = map_path(folder, name), map_path(folder, name.partition("/")[0])
    is_of_slides = has_patient_format(patient_path)
    if not overwrite and patient_path.exists() and is_of_slides != ("/" in name):
        keep = "--overwrite replaces it, another --out keeps both"
        if "/" in name:
            return f"{patient_path} does not link several slides; {keep}"
        return f"{patient_path} links several slides, not one; {keep}"
    try:
        record = read_provenance(path)
    except MapError as error:
        return TO_DO if overwrite else f"{error}, with --overwrite"
    if record is None or overwrite:
        return TO_DO
    old_key = record.get("identity")
    old_key = old_key if isinstance(old_key, dict) else {}
    if old_key == cache_key:
        return DONE
    keys = sorted({*old_key, *cache_key}, key=str)
    changed = [str(key) for key in keys if old_key.get(key) != cache_key.get(key)]
    made = f"was made with another {', '.join(changed)}"
    if "data" in changed and record.get("data", data) != data:
        made += f" ({record['data']}, not {data})"
    return f"{path} {made}; --overwrite replaces it, another --out keeps both"


def sizes_of_patients(pack: Pack, patients: Sequence[str]) -> dict[str, int]:
    """Return a dict from patient id to number of patches."""
    return {patient: len(pack.rows_of(patient)) for patient in patients}


def map_names(pack: Pack, patients: Iterable[str]) -> list[str]:
    """Return the names of the maps of patients: PATIENT, or PATIENT/SLIDE for several slides.

    Raises:
        DataError: A patient is not in the pack.
    """
    names: list[str] = []
    for patient in dict.fromkeys(patients):
        pack.rows_of(patient)
        slides = [slide.name for slide in pack.slides_of(patient)]
        names += [f"{patient}/{slide}" for slide in slides] if len(slides) > 1 else [patient]
    return names


def sizes_of_slides(rows: Sequence[ManifestRow]) -> dict[str, int]:
    """Return a dict from map name to size of the slide in bytes; a missing slide has size 0."""
    return {row.map_name: _num_bytes(row.slide) for row in rows}


def _num_bytes(slide: Path) -> int:
    """Return the total size of all files of a slide; MRXS slides have several files."""
    from wsi_idc.slides.slide import companion_files

    files = (slide, *companion_files(slide))
    return sum(file.stat().st_size for file in files if file.is_file())


def shard(sizes: Mapping[str, int], index: int, count: int) -> list[str]:
    """Divide names into ``count`` shards of similar size; return shard ``index``, counted from 1.

    The names of a shard are in the order of ``sizes``. The result is the same on every machine.
    """
    shard_of = assign_shards(sizes, count)
    return [name for name in sizes if shard_of[name] == index - 1]


def assign_shards(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return a dict from name to shard number, counted from 0.

    The names are assigned from the largest to the smallest size. Each name is assigned to the
    shard that has the smallest total size so far.
    """
    loads = [(0, index) for index in range(count)]  # a heap of (total size, number) of each shard
    shard_of = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, index = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], index))
        shard_of[name] = index
    return shard_of


def parse_shard(text: str) -> tuple[int, int]:
    """Return the index of a shard and the count of shards from a text such as "2/8"."""
    match = _SHARD.fullmatch(text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count <= _MAX_SHARDS:
        raise DataError(f"shard {text!r} is not I/N with I from 1 to N, such as 2/8")
    return index, count
