"""Small slides with tissue of known colors, and their annotations as QuPath GeoJSON."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.slides.tiffs import write_tiff

CELL_PX = 200  # a patch of 50 px at 4 um/px on a slide of 1 um/px
GLASS = (255, 255, 255)


def tissue_of(cells: dict[tuple[int, int], int], *, rows: int, cols: int) -> NDArray[np.uint8]:
    """Return a slide of 1 um/px: white glass, and stained noise in the given cells.

    Args:
        cells: Seed of the tissue in each cell (row, col).
        rows, cols: Size of the slide in cells of ``CELL_PX``.
    """
    image = np.full((rows * CELL_PX, cols * CELL_PX, 3), GLASS, np.uint8)
    for (row, col), seed in cells.items():
        noise = np.random.default_rng(seed).integers(-30, 30, (CELL_PX // 4, CELL_PX // 4, 1))
        tissue = (np.array([190, 110, 160]) + noise).astype(np.uint8)
        cell = np.s_[row * CELL_PX :, col * CELL_PX :]
        image[cell][:CELL_PX, :CELL_PX] = tissue.repeat(4, axis=0).repeat(4, axis=1)
    return image


def write_slide(path: Path, cells: dict[tuple[int, int], int], *, rows: int, cols: int) -> Path:
    """Write a slide of ``tissue_of`` as a tiled TIFF of 1 um/px."""
    return write_tiff(path, tissue_of(cells, rows=rows, cols=cols), mpp=1.0)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """Return the ring of a rectangle; the arguments are in cells."""
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    return [[x * CELL_PX, y * CELL_PX] for x, y in corners]


def write_outlines(path: Path, *outlines: tuple[str, list[list[float]]]) -> Path:
    """Write outlines, each a class and a ring in px, as a FeatureCollection of QuPath."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, ring in outlines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def make_slides(folder: Path) -> Path:
    """Write three slides of two patients, a manifest and annotations into a folder; return it."""
    slides, outlines = folder / "slides", folder / "outlines"
    slides.mkdir()
    outlines.mkdir()
    write_slide(slides / "one.tif", {(0, 0): 1, (0, 1): 2, (1, 2): 3}, rows=2, cols=3)
    write_slide(slides / "two.tif", {(0, 0): 4, (1, 0): 5}, rows=2, cols=2)
    write_slide(slides / "three.tif", {(0, 0): 6, (0, 1): 7}, rows=1, cols=2)
    lines = ["slide,patient", "one.tif,P", "two.tif,P", "three.tif,Q"]
    (slides / "slides.csv").write_text("\n".join(lines) + "\n")
    tumor, stroma = ("Tumor: IDC", box(0, 0, 1, 1)), ("Stroma", box(1, 0, 1.4, 1))
    write_outlines(outlines / "one.geojson", tumor, stroma)
    stroma, ignored = ("Stroma", box(0, 0, 1, 1)), ("Ignore*", box(0, 1, 1, 2))
    write_outlines(outlines / "two.tif.geojson", stroma, ignored)
    write_outlines(outlines / "three.geojson", ("Tumor", box(0, 0, 1.5, 1)))
    return folder
