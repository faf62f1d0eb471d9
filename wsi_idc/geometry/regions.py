"""Regions of patches called IDC, as polygons along the edges of their cells."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Region:
    """Patches that touch by an edge.

    Attributes:
        polygon: Outline and holes, in columns (x) and rows (y) of the grid.
        cells: Rows and columns of its patches, shape (N, 2).
    """

    polygon: shapely.Polygon
    cells: NDArray[np.int64]


def regions_of(marked: NDArray[np.bool_]) -> list[Region]:
    """Return the regions of a grid, the largest first.

    Cells that touch by a corner alone are two regions: joined, their outline would touch itself,
    which is no valid polygon. For the same reason shapely draws the outlines, by the union of the
    cells, rather than OpenCV's findContours, which joins such cells, runs through the middle of
    pixels and cuts the corners of holes.

    Args:
        marked: Which cells, shape (rows, cols).
    """
    labels, num = ndimage.label(marked)  # by edges, not by corners
    cells = np.argwhere(marked)
    owner = labels[cells[:, 0], cells[:, 1]]
    order = np.argsort(owner, kind="stable")
    bounds = np.cumsum(np.bincount(owner, minlength=num + 1)[1:])[:-1]
    parts = np.split(cells[order], bounds) if num else []
    parts.sort(key=len, reverse=True)
    return [Region(_outline(part), part) for part in parts]


def _outline(cells: NDArray[np.int64]) -> shapely.Polygon:
    rows, cols = cells.T
    outline = shapely.coverage_union_all(shapely.box(cols, rows, cols + 1, rows + 1))
    # Corners of cells along a straight edge are no corners of the region.
    polygon = outline.simplify(0)
    assert polygon.geom_type == "Polygon"
    return polygon
