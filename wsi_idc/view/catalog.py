"""Catalog of the viewer: maps with their slides, and slides without a map."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack
from wsi_idc.maps.cohort import is_cohort, read_cohort
from wsi_idc.maps.map_reader import folder_of_slide, map_paths, maps_of
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.slides.manifest import find_slides, slide_stem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogItem:
    """A map, or a slide without a map.

    Attributes:
        name: Unique name: ``map_name``, or FOLDER/``map_name`` if several folders are shown.
        map_name: Name of the map or the slide. Maps of the same slide have the same name.
        map_path: Map file; None for a slide without a map.
        slide_path: Slide file; None for a map.
        row: Row of the map in the table of the cohort; empty for a slide without a map.
    """

    name: str
    map_name: str
    map_path: Path | None = None
    slide_path: Path | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalog:
    """Items that the viewer shows, and the files and folders that belong to the items.

    Attributes:
        items: The items; URLs of the viewer contain the index of an item.
        failed: For each map file that cannot be used, the reason.
        slides: Files in the folder of slides, by file name.
        annotations: Folder of annotation files; None without annotations.
        annotation_frame: Origin of the coordinates of annotations, as in ``read_annotations``.
        mpp: Microns per level-0 px of slides without a map; None means the value in the file.
    """

    items: Sequence[CatalogItem]
    failed: Mapping[Path, str] = field(default_factory=dict)
    slides: Mapping[str, Path] = field(default_factory=dict)
    annotations: Path | None = None
    annotation_frame: str = "auto"
    mpp: float | None = None


def read_catalog(
    paths: Sequence[Path],
    *,
    slides: Path | None = None,
    annotations: Path | None = None,
    annotation_frame: str = "auto",
    mpp: float | None = None,
) -> Catalog:
    """Find the maps and slides in ``paths``, and read a table row from each map.

    Args:
        paths: Map files, slide files, and folders of maps or of slides.
        slides: Folder with the slides of the maps.
        annotations: Folder with annotation files.
        annotation_frame: Origin of the coordinates of annotations, as in ``read_annotations``.
        mpp: Microns per level-0 px of slides without a map.

    Raises:
        MapError: No map and no slide can be used, or a folder is missing.
        DataError: A folder has neither maps nor slides.
    """
    for folder in filter(None, (slides, annotations)):
        if not folder.is_dir():
            raise MapError(f"{folder}: no such folder; give a folder that exists")
    groups: dict[str, list[CatalogItem]] = {}  # for each folder, its items
    failed: dict[Path, str] = {}
    for folder_name, files in _group(paths).items():
        maps = [file for file in files if file.suffix == ".h5" and not is_cohort(file)]
        if len(maps) > 1:
            logger.info("reading %s", count(len(maps), "map"))
        cohort = read_cohort(maps)
        failed |= cohort.failed
        groups[folder_name] = [
            CatalogItem(name, name, cohort.paths[name], row=row)
            for name, row in cohort.rows.items()
        ] + [
            CatalogItem(slide_stem(file), slide_stem(file), slide_path=file)
            for file in files
            if file.suffix != ".h5"
        ]
    prefixes = _prefixes(list(groups))
    items = [
        replace(item, name=prefixes[folder] + item.name)
        for folder, group in groups.items()
        for item in group
    ]
    if not items:
        first = next(iter(failed.values()), "no map given")
        raise MapError(f"nothing to view: {first}")
    counts = Counter(item.name for item in items)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise MapError(f"two files would both be shown as {twice[0]}; give only one of the files")
    by_name = {path.name: path for path in find_slides([slides])} if slides else {}
    return Catalog(items, failed, by_name, annotations, annotation_frame, mpp)


def _group(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the map and slide files in ``paths`` by folder, each file once."""
    groups: dict[str, dict[Path, None]] = {}
    for path in paths:
        if path.is_dir():
            files = map_paths(path) or find_slides([path])
            groups.setdefault(str(path), {}).update(dict.fromkeys(files))
            continue
        for file in maps_of(path):
            folder = file.parent.parent if folder_of_slide(file) else file.parent
            groups.setdefault(str(folder), {})[file] = None
    return {folder: list(files) for folder, files in groups.items()}


def _prefixes(folders: Sequence[str]) -> dict[str, str]:
    """Return, for each folder, the text that is put before the names of its items.

    The text is the name of the folder, or its path if two folders have the same name. If there is
    only one folder, the text is empty.
    """
    if len(folders) == 1:
        return {folders[0]: ""}
    names = {folder: Path(folder).resolve().name for folder in folders}
    are_different = len(set(names.values())) == len(folders)
    return {folder: f"{name if are_different else folder}/" for folder, name in names.items()}


def find_slide(patient_map: PatientMap, catalog: Catalog) -> Path:
    """Return the slide file of a map.

    The file is first searched in the catalog's slides, then at the path that the map records.

    Raises:
        MapError: The file is not found; the message has the file name.
    """
    assert patient_map.slide is not None
    name = patient_map.slide.name
    if name in catalog.slides:
        return catalog.slides[name]
    recorded = _recorded_path(patient_map)
    try:
        if recorded is not None and recorded.exists():
            return recorded
    except (OSError, ValueError):  # such as a name that is too long, or has a zero byte
        logger.debug("the path of slide %s in the map is not valid", name)
    place = f" (path when the map was made: {recorded})" if recorded else ""
    raise MapError(f"the slide {name}{place} is not found; give its folder as --slides")


def _recorded_path(patient_map: PatientMap) -> Path | None:
    """Return the path of the slide that a map, or the pack of the map, records."""
    data = str(patient_map.provenance.get("data") or "")
    if patient_map.source == "slide":
        return Path(data) if data else None
    try:
        slides = Pack(Path(data)).slides_of(patient_map.patient)
    except (WsiIdcError, OSError, ValueError):
        return None
    names = {slide.name: Path(slide.path) for slide in slides}
    if not patient_map.slide_name and len(names) == 1:
        return next(iter(names.values()))
    return names.get(patient_map.slide_name)
