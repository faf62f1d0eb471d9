"""Where the cells of a map's grid lie in px: numbers in, numbers out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import MapError
from wsi_idc.maps.patient_map import PatientMap

# Corners are stored as whole px, so they lie off the true grid by what was cut off.
_TOLERANCE_PX = 1.0
_DECIMALS = 4


@dataclass(frozen=True)
class GridTransform:
    """The grid's corner and the side of its cells, both in px of the picture meant.

    Attributes:
        x, y: Top left corner of cell (0, 0).
        side: Of a cell; not whole where two resolutions do not divide.
        mpp: Microns per px.
    """

    x: float
    y: float
    side: float
    mpp: float

    def points(self, col_row: NDArray) -> NDArray[np.float64]:
        """Return corners of cells as px.

        Each is a multiple of the exact side, never a sum of rounded ones, so the last column lies
        as well as the first.

        Args:
            col_row: Columns and rows, where (0, 0) is the top left corner of the first cell, shape
                (..., 2).

        Returns:
            x and y, the same shape.
        """
        points = np.array([self.x, self.y]) + np.asarray(col_row, np.float64) * self.side
        return points.round(_DECIMALS)


def grid_key(content: PatientMap) -> str:
    """Return what tells a map's grid from every other one: cells of two have different ids."""
    return f"{content.patient}/{content.patch_px}px/{content.cell_px}px/{content.mpp:g}um"


def grid_transform(content: PatientMap, coordinates: str = "level0") -> GridTransform:
    """Return where the grid lies.

    Args:
        content: The map.
        coordinates: "level0", full-resolution px of the slide, or "image", px of the stitched
            tissue. The same for a pack, whose tissue is all there is.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    if coordinates == "image":
        return GridTransform(0.0, 0.0, float(content.cell_px), content.mpp)
    side = content.cell_size_level0
    rest = content.coords - content.row_col[:, ::-1] * side  # (N, 2), x and y
    corner = np.median(rest, axis=0).round()
    if np.abs(rest - corner).max() > _TOLERANCE_PX:
        raise MapError(
            f"patient {content.patient}: the corners of the patches do not lie on a grid of "
            f"{side:g} px; make the map anew"
        )
    # Where patches overlap, a cell is the middle of its patch.
    margin = content.origin_px * content.mpp / content.level0_mpp
    return GridTransform(
        float(corner[0]) + margin, float(corner[1]) + margin, side, content.level0_mpp
    )
