"""Layers as PNG that lie over each other, and a JSON file that says where and what they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsi_idc import NOTICE
from wsi_idc.core.files import atomic_write, write_json
from wsi_idc.export.coordinates import grid_transform
from wsi_idc.export.layers import Layer
from wsi_idc.maps.patient_map import PatientMap

# Pillow warns of larger pictures as of a decompression bomb from about 89 million px on.
MAX_PX = 2**26


def cell_px_of(content: PatientMap) -> int:
    """Return the side of a cell in the PNGs: a whole number, so that no cell is off by a px.

    It is that of the stitched tissue unless the picture would have more than ``MAX_PX``.
    """
    rows, cols = content.shape
    return max(1, min(content.cell_px, int((MAX_PX / (rows * cols)) ** 0.5)))


def write_png(content: PatientMap, layer: Layer, out: Path) -> None:
    """Write a layer, transparent where there is no patch."""
    cell_px = cell_px_of(content)
    rows, cols = content.shape
    picture = np.empty((rows * cell_px, cols * cell_px, 4), np.uint8)
    for row in range(rows):
        picture[row * cell_px : (row + 1) * cell_px] = layer.paint_row(row, cell_px)
    with atomic_write(out) as partial:
        # A third of the usual level's time for 10 % more bytes.
        Image.fromarray(picture).save(partial, format="PNG", compress_level=1)


def write_legend(content: PatientMap, layers: Sequence[tuple[Layer, Path]], out: Path) -> None:
    """Write what a world file says of the PNGs, and what their colours mean.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    rows, cols = content.shape
    cell_px, place = cell_px_of(content), grid_transform(content)
    legend: dict[str, Any] = {
        "patient": content.patient,
        "width_px": cols * cell_px,
        "height_px": rows * cell_px,
        "px_per_patch": cell_px,
        "um_per_px": content.cell_px * content.mpp / cell_px,
        "mpp_source": content.mpp_source,
        # x of level 0 = x0 + x * level0_px_per_px
        "level0": {
            "x0": place.x,
            "y0": place.y,
            "level0_px_per_px": place.side / cell_px,
            "mpp": place.mpp,
        },
        "threshold": content.threshold,
        "layers": [
            {"name": layer.name, "file": path.name, "title": layer.title, **layer.scale}
            for layer, path in layers
        ],
        "notice": NOTICE,
    }
    write_json(out, legend)
