"""Annotations of a slide: outlines with a class, in level-0 px of the complete glass."""

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError, SlideError
from wsi_idc.core.text import shorten_list
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.slides.annotation_files import parse_file
from wsi_idc.slides.manifest import slide_stem
from wsi_idc.slides.outlines import AnnotationFile, Outline, Ring

if TYPE_CHECKING:
    import shapely

logger = logging.getLogger(__name__)

SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz", ".xml", ".ndpa")
IDC, NON_IDC, IGNORE, UNANNOTATED = "IDC", "non-IDC", "ignore", "unannotated"
UNCLASSIFIED = "Unclassified"  # QuPath's name for objects without a class
# Only classes that mean the same in all laboratories. Necrosis, for example, belongs to the tumor
# in some laboratories but not in others.
DEFAULT_CLASSES = (
    "IDC=IDC, Invasive ductal carcinoma=IDC, Tumor=IDC, Tumour=IDC, "
    "non-IDC=non-IDC, Stroma=non-IDC, Immune cells=non-IDC, Normal=non-IDC, "
    "Ignore*=ignore, Region*=unannotated"
)
_MAX_COORDINATE = 1e9
_MIN_ON_SLIDE = 0.5
_FITS = 0.99  # outlines fit a frame if at least this share of their area is inside the frame
_GRID_PX = 1e-3  # corners are rounded to this grid if rounding errors make an outline invalid


@dataclass(frozen=True)
class Annotation:
    """Outline that a person drew on a slide.

    Attributes:
        name: Class in the file, such as "Tumor: IDC"; "" if the outline has no class.
        geometry: Valid polygon in level-0 px of the complete glass; y increases downwards.
    """

    name: str
    geometry: "shapely.Polygon | shapely.MultiPolygon"


def read_annotations(
    path: Path,
    *,
    size: tuple[int, int],
    bounds: Bounds | None = None,
    mpp: float | None = None,
    frame: str = "auto",
    properties: Mapping[str, str] | None = None,
) -> list[Annotation]:
    """Read the annotations of a slide: QuPath GeoJSON, ASAP XML, ImageScope XML or NDPA.

    Points, lines and outlines without an area are skipped, and one warning is logged. An outline
    that crosses itself is repaired, and a message is logged. The repaired outline contains all
    enclosed area, including area that is enclosed twice.

    Args:
        path: Annotation file.
        size: Width and height of the slide in level-0 px.
        bounds: Scanned area of the slide, to which QuPath crops the slide.
        mpp: Microns per level-0 px; used for NDPA files if ``properties`` state no value.
        frame: Origin of the coordinates: "level0" is the corner of the glass, and "qupath" the
            corner of the bounds. With "auto", GeoJSON outlines must fit exactly one of these
            origins. ASAP and ImageScope show the complete glass, so with "auto", their files have
            the origin "level0". NDPA files state physical positions and ignore ``frame``.
        properties: Metadata of the slide file; NDPA files need the slide position in the metadata.

    Raises:
        SlideError: The file cannot be used, the outlines are not on the slide, or ``frame`` is
            "auto" and the origin is not clear.
    """
    import shapely

    path = Path(path)
    parsed = parse_file(path)
    if parsed.format == "ndpa":
        _scale_ndpa(path, parsed, size=size, mpp=mpp, properties=properties or {})
    geometries = _build(path, parsed)
    _warn_skipped(path, parsed.skipped)
    names = [outline.name for outline, _ in geometries]
    shapes = np.array([geometry for _, geometry in geometries], dtype=object)
    if bounds is not None and parsed.format != "ndpa" and len(shapes):
        if frame == "auto":
            is_clear = parsed.format != "geojson"
            frame = "level0" if is_clear else _find_frame(path, shapes, size=size, bounds=bounds)
        if frame == "qupath":
            corner = (bounds.x, bounds.y)
            shapes = shapely.transform(shapes, lambda points: points + corner)
    _check_on_slide(path, shapes, size=size)
    return [Annotation(name, shape) for name, shape in zip(names, shapes, strict=True)]


def find_annotation_file(folder: Path, slide: Path) -> Path | None:
    """Return the annotation file of a slide in ``folder``; None if there is no such file.

    The annotation file has the name of the slide file, with or without its suffix, and one of
    ``SUFFIXES``. For example, the slide scan.svs has the annotation file scan.geojson or
    scan.svs.geojson. As in QuPath, ``.ome.tif`` is one suffix.

    Raises:
        SlideError: The folder is missing, or has several annotation files of the slide.
    """
    if not folder.is_dir():
        raise SlideError(f"{folder}: no such folder; give the folder of the annotations")
    stems = dict.fromkeys(
        (slide_stem(slide), slide.stem, slide.name, slide.stem.removesuffix(".ome"))
    )
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SlideError(f"{slide}: has several annotation files in {folder}: {names}; keep one")
    return found[0] if found else None


def _scale_ndpa(
    path: Path,
    parsed: AnnotationFile,
    *,
    size: tuple[int, int],
    mpp: float | None,
    properties: Mapping[str, str],
) -> None:
    """Convert the outlines of an NDPA file to level-0 px, in place.

    In the file, the unit is a nanometer and the origin is the center of the glass.
    """
    try:
        center = [
            float(properties[f"hamamatsu.{axis}OffsetFromSlideCentre"]) for axis in ("X", "Y")
        ]
        um = [float(properties.get(f"openslide.mpp-{axis}", mpp or "")) for axis in ("x", "y")]
        if min(um) <= 0:
            raise ValueError
    except (KeyError, ValueError):
        raise SlideError(
            f"{path}: NDPA annotations need the position and the mpp that only NDPI slides state; "
            "give the original NDPI slide, or annotations as GeoJSON"
        ) from None
    for outline in parsed.outlines:
        for ring in (ring for polygon in outline.polygons for ring in polygon):
            ring -= center
            ring /= np.multiply(um, 1000)
            ring += np.divide(size, 2)


def _build(path: Path, parsed: AnnotationFile) -> list[tuple[Outline, "shapely.Geometry"]]:
    """Return each outline that has an area, together with a valid geometry."""
    import shapely

    repaired: list[str] = []
    built = []
    for outline in parsed.outlines:
        rings = [ring for polygon in outline.polygons for ring in polygon] + outline.holes
        for ring in rings:
            if not (np.abs(ring) <= _MAX_COORDINATE).all():  # also False for NaN
                raise SlideError(
                    f"{path}: {_describe(outline)} has a coordinate that is not a number or too "
                    "large; delete this outline or export the annotations again"
                )
        polygons = [shape for polygon in outline.polygons for shape in _polygon(polygon)]
        geometry = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
        if not geometry.is_valid:
            geometry = _repair(geometry)
            repaired.append(_describe(outline))
        if outline.holes:
            holes = [shape for ring in outline.holes for shape in _polygon([ring])]
            geometry = _repair(geometry.difference(_repair(shapely.MultiPolygon(holes))))
        if geometry.area > 0:
            built.append((outline, geometry))
        else:
            parsed.skipped["outlines without an area"] += 1
    if repaired:
        logger.info("%s: repaired outlines that cross themselves: %s", path, shorten_list(repaired))
    return built


def _repair(geometry: "shapely.Geometry") -> "shapely.Geometry":
    """Return a valid polygon for a polygon that crosses itself.

    The result contains the area inside the outer rings, except the holes.
    """
    import shapely

    geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    if not geometry.is_valid:  # possible because of rounding errors
        geometry = shapely.union_all(shapely.get_parts(geometry), grid_size=_GRID_PX)
    parts = shapely.get_parts(geometry)  # some parts may be lines without an area
    return shapely.MultiPolygon(parts[shapely.area(parts) > 0].tolist())


def _polygon(rings: list[Ring]) -> list["shapely.Polygon"]:
    """Return a list of one polygon, or an empty list if the outer ring has too few points."""
    import shapely

    rings = [ring for i, ring in enumerate(rings) if len(ring) >= 3 or i == 0]
    return [shapely.Polygon(rings[0], rings[1:])] if rings and len(rings[0]) >= 3 else []


def _describe(outline: Outline) -> str:
    return f"{outline.place} ({outline.name or UNCLASSIFIED})"


def _warn_skipped(path: Path, skipped: Counter[str]) -> None:
    if skipped:
        counts = ", ".join(f"{num} {kind}" for kind, num in skipped.items())
        logger.warning("%s: skipped %s; only outlines with an area are used", path, counts)


def _share_inside(shapes: NDArray[np.object_], box: tuple[float, float, float, float]) -> float:
    """Return the share (0..1) of the shapes' area inside a box (left, top, right, bottom)."""
    import shapely

    total = shapely.area(shapes).sum()
    left, top, right, bottom = shapely.bounds(shapes).T
    sticks_out = (left < box[0]) | (top < box[1]) | (right > box[2]) | (bottom > box[3])
    outside = shapely.difference(shapes[sticks_out], shapely.box(*box))
    return float(1 - shapely.area(outside).sum() / total)


def _find_frame(
    path: Path, shapes: NDArray[np.object_], *, size: tuple[int, int], bounds: Bounds
) -> str:
    """Find the origin of the outlines, "level0" or "qupath".

    Raises:
        SlideError: The outlines fit both origins, or they fit neither.
    """
    right, bottom = bounds.x + bounds.width, bounds.y + bounds.height
    level0 = _share_inside(shapes, (bounds.x, bounds.y, right, bottom)) >= _FITS
    qupath = _share_inside(shapes, (0, 0, bounds.width, bounds.height)) >= _FITS
    if not level0 and not qupath:
        # In the frame of the complete glass, outlines can also be outside the scanned area.
        level0 = _share_inside(shapes, (0, 0, *size)) >= _FITS
        if not level0:
            raise SlideError(
                f"{path}: the outlines do not fit the slide of {size[0]}x{size[1]} px, of which "
                f"{bounds.width}x{bounds.height} px are scanned; give the annotations of this "
                "slide, or --annotation-frame level0 or qupath"
            )
    if level0 and qupath:
        raise SlideError(
            f"{path}: the outlines fit both the complete glass and QuPath's cropped slide; give "
            "--annotation-frame qupath if QuPath made the file, else level0"
        )
    return "level0" if level0 else "qupath"


def _check_on_slide(path: Path, shapes: NDArray[np.object_], *, size: tuple[int, int]) -> None:
    import shapely

    if not len(shapes) or _share_inside(shapes, (0, 0, *size)) >= _MIN_ON_SLIDE:
        return
    left, top, right, bottom = shapely.total_bounds(shapes)
    raise SlideError(
        f"{path}: most of the outlines (x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}) "
        f"are outside the slide of {size[0]}x{size[1]} px; give the annotations of this slide"
    )


def class_table(text: str | None = None) -> dict[str, str]:
    """Parse a table of classes, such as "Tumor=IDC, Stroma=non-IDC, Necrosis=ignore".

    Args:
        text: Rows ``class=target``, separated by commas. A target is "IDC", "non-IDC", "ignore"
            (patches there are left out) or "unannotated" (the outline has no effect). A class with
            a comma has quotes around it, as in a CSV file. The class "Unclassified" means outlines
            without a class. None means ``DEFAULT_CLASSES``.

    Returns:
        Dict from class, in lower case, to target; ``target_of`` reads this dict.

    Raises:
        DataError: A row is invalid.
    """
    targets = {_normalize(target): target for target in (IDC, NON_IDC, IGNORE, UNANNOTATED)}
    table: dict[str, str] = {}
    for row in _split_rows(text or DEFAULT_CLASSES):
        name, equals, target = (part.strip() for part in row.rpartition("="))
        key, known = _normalize(name), targets.get(_normalize(target).replace("_", "-"))
        if not equals or not name or known is None:
            raise DataError(
                f"--classes: {row.strip()!r} is not CLASS=TARGET with a target IDC, non-IDC, "
                'ignore or unannotated; give, for example, "Tumor=IDC, Stroma=non-IDC"; a class '
                "with a comma needs quotes"
            )
        if table.setdefault(key, known) != known:
            raise DataError(f"--classes: {name!r} has two targets; give one")
    return table


def _split_rows(text: str) -> list[str]:
    try:
        (rows,) = csv.reader([" ".join(text.split())], skipinitialspace=True)
    except csv.Error as error:
        raise DataError(f"--classes: {error}") from None
    return rows


def _normalize(name: str) -> str:
    parts = (" ".join(part.split()) for part in name.casefold().split(":"))
    return ": ".join(part for part in parts if part)


def target_of(name: str, table: Mapping[str, str]) -> str | None:
    """Return the target of a class; None if the table has neither the class nor its parents.

    If a sub-class such as "Tumor: IDC" has no row, the row of the parent "Tumor" is used. Upper and
    lower case mean the same, and additional spaces are ignored.
    """
    key = _normalize(name) or _normalize(UNCLASSIFIED)
    while key not in table:
        key, colon, _ = key.rpartition(": ")
        if not colon:
            return None
    return table[key]


def check_classes(
    annotations: Sequence[Annotation], table: Mapping[str, str], path: Path | None = None
) -> None:
    """Check that the table has a row for the class of each annotation.

    Args:
        annotations: Annotations.
        table: Result of ``class_table``.
        path: Annotation file, for the error message.

    Raises:
        DataError: Some classes have no row; the message lists all classes with counts of outlines.
    """
    counts = Counter(annotation.name or UNCLASSIFIED for annotation in annotations)
    missing = [name for name in counts if target_of(name, table) is None]
    if missing:
        found = ", ".join(
            f'"{name}" ({num})' if "," in name else f"{name} ({num})"
            for name, num in counts.most_common()
        )
        place = "" if path is None else f"{path}: "
        raise DataError(
            f"{place}no target for the class {', '.join(map(repr, missing))}; found {found}; name "
            'all classes in --classes, for example "Tumor=IDC, Stroma=non-IDC, Necrosis=ignore"'
        )
