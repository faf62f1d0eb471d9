"""Coordinates of patches on a slide, or in the picture that is stitched from the patches."""

import math
import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import MapError
from wsi_idc.maps.patient_map import PatientMap

# Corners of patches are stored as integers, so rounding moves a corner by up to one px.
_TOLERANCE_PX = 1.0
_DECIMALS = 4
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "wsi-idc")


@dataclass(frozen=True)
class GridTransform:
    """Position of a grid and side of the cells, in px of a slide or of the stitched picture.

    Attributes:
        x, y: Position of the top left corner of cell (0, 0).
        side: Side of a cell; not always an integer, because slide and map differ in resolution.
        mpp: Microns per px.
        right, bottom: Position of the edges of the slide; infinity if the map has no slide.
    """

    x: float
    y: float
    side: float
    mpp: float
    right: float = math.inf
    bottom: float = math.inf

    def points(self, col_row: NDArray) -> NDArray[np.float64]:
        """Return the top left corners of cells in px.

        A corner is computed as a multiple of the exact side of a cell, not as a sum of rounded
        sides. Therefore rounding errors do not add up along the grid.

        Args:
            col_row: Column and row of each cell, shape (..., 2).

        Returns:
            x and y of each corner, in the shape of ``col_row``.
        """
        points = np.array([self.x, self.y]) + np.asarray(col_row, np.float64) * self.side
        return points.round(_DECIMALS)

    def is_on_slide(self, col_row: NDArray) -> NDArray[np.bool_]:
        """Return True for each cell that is completely or partly on the slide.

        Args:
            col_row: Column and row of each cell, shape (..., 2).

        Returns:
            Array of bool, shape (...).
        """
        x, y = np.moveaxis(self.points(col_row), -1, 0)
        return (x < self.right) & (y < self.bottom)

    def clip(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Limit x of each point to the right edge of the slide, and y to the bottom edge."""
        return np.minimum(points, (self.right, self.bottom))


def stable_id(patient_map: PatientMap, part: str) -> str:
    """Return the UUID of a part of a map. The UUID depends only on map name, grid and ``part``."""
    grid = f"{patient_map.patch_px}px/{patient_map.cell_px}px/{patient_map.mpp:g}um"
    return str(uuid.uuid5(_NAMESPACE, f"{patient_map.map_name}/{grid}/{part}"))


def grid_transform(patient_map: PatientMap, coordinates: str = "qupath") -> GridTransform:
    """Compute the position of the grid of a map.

    Args:
        patient_map: The map.
        coordinates: "level0" means level-0 px from the top left corner of the slide. "qupath"
            means level-0 px from the top left corner of the scanned area, because QuPath shows
            only this area. "qupath" equals "level0" if the map has no slide, or if the slide has
            no scanned area. "image" means px of the stitched picture.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    if coordinates == "image":
        return GridTransform(0.0, 0.0, float(patient_map.cell_px), patient_map.mpp)
    side = patient_map.cell_size_level0
    offsets = patient_map.coords - patient_map.row_col[:, ::-1] * side  # (N, 2), x and y
    corner = np.median(offsets, axis=0).round()
    if np.abs(offsets - corner).max() > _TOLERANCE_PX:
        raise MapError(
            f"patient {patient_map.map_name}: the corners of the patches are not on a grid of "
            f"{side:g} px; make the map again"
        )
    # If patches overlap, a cell is only the middle of its patch.
    margin = patient_map.origin_px * patient_map.mpp / patient_map.level0_mpp
    x, y = (float(edge) + margin for edge in corner)
    if (slide := patient_map.slide) is None:
        return GridTransform(x, y, side, patient_map.level0_mpp)
    left = top = 0
    if coordinates == "qupath" and slide.bounds is not None:
        left, top = slide.bounds.x, slide.bounds.y
    edges = (slide.width - left, slide.height - top)
    return GridTransform(x - left, y - top, side, slide.mpp, *edges)
