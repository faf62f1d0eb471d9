"""Picture of the tissue of a map, shrunk while it is read."""

from pathlib import Path

import numpy as np

from wsi_idc.maps.map_reader import read_image_rows, read_map_without_cams
from wsi_idc.plotting.raster import Pixels, downscale


def read_small_image(path: Path, max_side_px: int) -> Pixels | None:
    """Read the picture of the tissue; its sides have at most ``max_side_px`` px.

    Returns:
        Picture, shape (rows * n, cols * n, 3), or None if the map has no picture. A cell has a side
        of n px, where n is at most ``cell_px`` of the map.
    """
    patient_map = read_map_without_cams(path)
    rows, cols = patient_map.shape
    cell_px = min(patient_map.cell_px, max(1, max_side_px // max(rows, cols)))
    picture = None
    for row, strip in enumerate(read_image_rows(path)):
        if picture is None:
            picture = np.empty((rows, cell_px, cols * cell_px, 3), np.uint8)
        picture[row] = downscale(strip, height=cell_px, width=cols * cell_px)
    return None if picture is None else picture.reshape(rows * cell_px, cols * cell_px, 3)
