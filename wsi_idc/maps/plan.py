"""Plan maps before they are built: the state and size of each map, and shards of similar size."""

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from wsi_idc import __version__
from wsi_idc.core.constants import SHORT_SHA
from wsi_idc.core.errors import DataError, MapError
from wsi_idc.data.pack import Pack
from wsi_idc.maps.map_reader import has_patient_format, map_path, read_provenance
from wsi_idc.slides.manifest import ManifestRow

TO_DO, DONE = "to do", "done"
# Words for the keys of ``MapBuilder.cache_key``; other keys are words already.
_WORDS = {
    "checkpoint": "model",
    "tta": "test-time augmentation",
    "smooth": "smoothing",
    "image": "picture of the tissue",
    "cam": "CAM",
    "format_version": "file format",
    "exclude_flagged": "exclusion of flagged patches",
    "slide_mpp": "mpp of the slide",
    "mpp_source": "source of the mpp",
    "min_tissue": "minimum of tissue",
    "min_piece_mm2": "smallest piece of tissue",
    "min_hole_mm2": "smallest hole in the tissue",
}
_PRECISIONS = ("fp32", "bf16", "fp16")
_MAX_VALUE_LENGTH = 60  # a file may have any text
_MAX_COMPARED = 5  # maps; reading one takes about 20 ms
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
    old_data = record.get("data", data)
    files = {} if old_data == data else {"data": f" ({old_data}, not {data})"}
    made = describe_changes(old_key, cache_key, known=files)
    if (version := record.get("version", __version__)) != __version__:
        made += f", by wsi-idc {str(version)[:_MAX_VALUE_LENGTH]}"
    remedies = "--overwrite replaces it, another --out keeps both"
    if options := _keeping_options(old_key, cache_key):
        remedies = f"{options} keeps it, {remedies}"
    return f"{path} was made with another {made}; {remedies}"


def describe_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], *, known: Mapping[str, str] | None = None
) -> str:
    """Describe the different values of two cache keys, such as "smoothing (off, not on)".

    Args:
        old: Cache key of an existing file.
        new: Cache key of the file to be made.
        known: Descriptions of the values of some keys, such as " (a.h5, not b.h5)".
    """
    texts = []
    for key in _changed(old, new):
        values = [_value_text(key, values.get(key)) for values in (old, new)]
        text = " ({}, not {})".format(*values) if all(values) else ""
        texts.append(_WORDS.get(key, key.replace("_", " ")) + (known or {}).get(key, text))
    return ", ".join(texts)


def find_other_settings(folder: Path, made: Iterable[Path]) -> tuple[Path, str] | None:
    """Find a map in ``folder`` with another model, smoothing or precision than a new map.

    Only the first ``_MAX_COMPARED`` other maps are read.

    Args:
        folder: Folder of the maps.
        made: New maps in this folder, all of the same settings.

    Returns:
        Map file and the differences, such as "smoothing (off, not on)"; None if there is no such
        map.
    """
    new_maps = set(made)
    if not new_maps:
        return None
    settings = _settings(min(new_maps))
    others = (path for path in sorted(folder.glob("*.h5")) if path not in new_maps)
    for path in islice(others, _MAX_COMPARED):
        if (other := _settings(path)) and settings and other != settings:
            return path, describe_changes(other, settings)
    return None


def _settings(path: Path) -> dict[str, Any]:
    """Return the values of the cache key of a map that do not depend on its data.

    The result is empty for a file that is not a map, such as cohort.h5.
    """
    key = None
    with suppress(MapError):
        key = (read_provenance(path) or {}).get("identity")
    keys = ("checkpoint", "precision", "smooth", "tta")
    return {name: key.get(name) for name in keys} if isinstance(key, dict) else {}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(str(key) for key in {*old, *new} if old.get(key) != new.get(key))


def _value_text(key: str, value: Any) -> str:
    """Return a value of a cache key as text; empty if the value means nothing to a user."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if key in ("checkpoint", "encoder") and isinstance(value, str):
        return value[:SHORT_SHA]
    is_text = isinstance(value, str) and key not in ("data", "mask")  # these are hash values
    return str(value)[:_MAX_VALUE_LENGTH] if is_text or isinstance(value, int | float) else ""


def _keeping_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the options with which an existing map is up to date; the text may be empty."""
    precision, smooth, changed = old.get("precision"), old.get("smooth"), _changed(old, new)
    options = {}
    if precision in _PRECISIONS:
        options["precision"] = f"--precision {precision}"
    if isinstance(smooth, bool):
        options["smooth"] = "--smooth" if smooth else "--no-smooth"
    return " ".join(options[key] for key in changed) if options.keys() >= set(changed) else ""


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
