"""Write a synthetic cohort of slides and their annotations, for the command ``prepare``."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from shapely import Polygon

from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.files import write_text
from wsi_idc.core.progress import progress
from wsi_idc.geometry.regions import extract_regions
from wsi_idc.synthetic.cohort import new_folder
from wsi_idc.synthetic.slide import DRAWN_MPP, MPP, draw_enlarged
from wsi_idc.synthetic.slide_formats import write_channels, write_pyramid, write_scn
from wsi_idc.synthetic.tissue import SynthSlide

MANIFEST, ANNOTATIONS = "slides.csv", "annotations"
WIDTH_PX, HEIGHT_PX = 2400, 2000
_SUFFIXES = (".tif", ".scn", ".ome.tif")  # the first three slides; all others are .tif
_GLASS = (4800, 3800)  # width and height of the glass of the .scn slide in px
_CORNER = (1200, 900)  # x, y of its scanned area
_COLORS = {"Tumor": [200, 0, 0], "Normal": [0, 140, 70]}
_STEP = 2  # outlines use every second px of the mask, so their px are 8 um wide
_MIN_AREA = 600  # smallest area of an outline or a hole in these px; about the area of a patch


@dataclass(frozen=True)
class SlideCohortSummary:
    """Files of a synthetic cohort of slides.

    Attributes:
        manifest: CSV file with the columns slide and patient.
        annotations: Folder with a GeoJSON file for each slide.
        slides: Paths of the slides.
        num_patients: Number of patients.
    """

    manifest: Path
    annotations: Path
    slides: list[Path]
    num_patients: int


def write_slide_cohort(
    root: Path,
    *,
    num_slides: int,
    num_patients: int,
    seed: int,
    width_px: int = WIDTH_PX,
    height_px: int = HEIGHT_PX,
) -> SlideCohortSummary:
    """Draw slides of patients S0001, S0002, ... and outlines of carcinoma and of normal tissue.

    The slides have 1 um/px, and all slides have the same stain. The second slide is an SCN file
    whose scanned area does not begin at the corner of the glass. The third slide is an OME-TIFF
    file with a page for each color channel. All other slides are pyramidal TIFF files. The file
    ``annotations/NAME.geojson`` has the outlines of a slide in the coordinates that QuPath shows.
    The same arguments give the same bytes.

    Args:
        root: Folder of slides, manifest and annotations. It is created if it does not exist.
        num_slides: Number of slides, at least ``num_patients``.
        num_patients: Number of patients, at least 1. If the slides cannot be
            divided equally, the first patients have one slide more than the others.
        seed: Seed of tissue and stain.
        width_px: Width of a slide, a multiple of 4, at least 1000 px.
        height_px: Height of a slide, a multiple of 4, at least 1000 px.

    Raises:
        WsiIdcError: ``root`` is a file or a folder that is not empty.
        ValueError: A number is out of its range.
    """
    if not 1 <= num_patients <= num_slides:
        raise ValueError("needs at least 1 patient, and a slide for each patient")
    rows = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(new_folder(root))
        bar = stack.enter_context(progress(num_slides, what="drawing", unit="slide"))
        for number in range(num_slides):
            turn, patient = divmod(number, num_patients)
            name = f"S{patient + 1:04d}-{turn + 1}"
            file = name + (_SUFFIXES[number] if number < len(_SUFFIXES) else _SUFFIXES[0])
            drawn, rgb = draw_enlarged(
                name, seed=seed, width_px=width_px, height_px=height_px, one_stain=True
            )
            _write_slide(folder / file, rgb)
            collection = {"type": "FeatureCollection", "features": list(_features(drawn))}
            write_text(folder / ANNOTATIONS / f"{name}.geojson", json.dumps(collection) + "\n")
            rows.append({"slide": file, "patient": f"S{patient + 1:04d}"})
            bar.update(1)
        table = pd.DataFrame(rows)
        write_text(folder / MANIFEST, csv_text(table))
    slides = [root / row["slide"] for row in rows]
    return SlideCohortSummary(root / MANIFEST, root / ANNOTATIONS, slides, num_patients)


def _write_slide(path: Path, rgb: NDArray[np.uint8]) -> None:
    if path.suffix == ".scn":
        x, y = _CORNER
        write_scn(path, rgb, x=x, y=y, glass=_GLASS, mpp=MPP)
    elif path.name.endswith(".ome.tif"):
        write_channels(path, rgb, mpp=MPP)
    else:
        write_pyramid(path, rgb, mpp=MPP)


def _features(drawn: SynthSlide) -> Iterator[dict[str, Any]]:
    """Yield each outline as a GeoJSON feature of QuPath.

    The coordinates are level-0 px from the corner of the scanned area.
    """
    scale = _STEP * DRAWN_MPP / MPP
    masks = {"Tumor": drawn.idc, "Normal": drawn.tissue & ~drawn.idc}
    for name, mask in masks.items():
        small = mask[_STEP // 2 :: _STEP, _STEP // 2 :: _STEP]
        for number, region in enumerate(extract_regions(small)):
            if len(region.cells) < _MIN_AREA:
                continue
            # Smooth the outline: without this, it has a step at each cell.
            polygon = region.polygon.simplify(1.0)
            holes = [ring for ring in polygon.interiors if Polygon(ring).area >= _MIN_AREA]
            rings = [
                np.multiply(ring.coords, scale).tolist() for ring in (polygon.exterior, *holes)
            ]
            yield {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{drawn.patient}/{name}/{number}")),
                "geometry": {"type": "Polygon", "coordinates": rings},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name, "color": _COLORS[name]},
                },
            }
