"""Write the layers of a map as PNG files, with a legend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsi_idc import NOTICE
from wsi_idc.core.files import atomic_write, write_json
from wsi_idc.export.layers import LayerPicture
from wsi_idc.maps.coordinates import grid_transform
from wsi_idc.maps.patient_map import PatientMap

# Pillow warns about a decompression bomb if a picture has more than about 89 million px.
MAX_PX = 2**26


def cell_px_of(patient_map: PatientMap) -> int:
    """Return the side of a cell in the PNG files, in px.

    The side is an integer, so that no cell is shifted. In most maps, the side is the same as in the
    stitched tissue. In a large map, the side is smaller, so that the picture has at most ``MAX_PX``
    px.
    """
    rows, cols = patient_map.shape
    return max(1, min(patient_map.cell_px, int((MAX_PX / (rows * cols)) ** 0.5)))


def write_png(patient_map: PatientMap, layer: LayerPicture, out: Path) -> None:
    """Write a layer as PNG; cells without a patch are transparent."""
    cell_px = cell_px_of(patient_map)
    rows, cols = patient_map.shape
    picture = np.empty((rows * cell_px, cols * cell_px, 4), np.uint8)
    for row in range(rows):
        picture[row * cell_px : (row + 1) * cell_px] = layer.paint_row(row, cell_px)
    with atomic_write(out) as partial:
        # Compression level 1 needs a third of the default's time, and 10 % more bytes.
        Image.fromarray(picture).save(partial, format="PNG", compress_level=1)


def write_legend(patient_map: PatientMap, layers: Mapping[Path, LayerPicture], out: Path) -> None:
    """Write the position of PNG files on the slide, and the meaning of their colors.

    Args:
        patient_map: The map.
        layers: For each PNG file, the layer in this file.
        out: JSON file to write.
    """
    rows, cols = patient_map.shape
    cell_px, transform = cell_px_of(patient_map), grid_transform(patient_map, "level0")
    legend: dict[str, Any] = {
        "patient": patient_map.patient,
        "slide_name": patient_map.slide_name,
        "width_px": cols * cell_px,
        "height_px": rows * cell_px,
        "px_per_patch": cell_px,
        "um_per_px": patient_map.cell_px * patient_map.mpp / cell_px,
        "mpp_source": patient_map.mpp_source,
        # x of a px in the slide (level 0) = x0 + x in the PNG file * level0_px_per_px
        "level0": {
            "x0": transform.x,
            "y0": transform.y,
            "level0_px_per_px": transform.side / cell_px,
            "mpp": transform.mpp,
        },
        "threshold": patient_map.threshold,
        "layers": [
            {"name": layer.name, "file": path.name, "title": layer.title, **layer.scale}
            for path, layer in layers.items()
        ],
        "notice": NOTICE,
    }
    write_json(out, legend)
