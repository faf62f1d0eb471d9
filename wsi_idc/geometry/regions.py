"""Connected regions of a grid and their outlines."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from wsi_idc.geometry.grid import scatter_to_grid, shape_of


def region_boundary(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the border of the cells in a mask as lines along the edges of cells.

    Args:
        mask: Whether each cell is inside, shape (rows, cols).

    Returns:
        Lines, shape (N, 2, 2): two ends of each line, and x, y of each end. Edges that continue
        each other form one line. The unit is a cell; the top left corner of the grid is (0, 0).
        The horizontal lines are first, from top to bottom. The vertical lines follow, from left
        to right.
    """
    inside = np.pad(mask, 1)
    y, left, right = _runs(inside[1:, 1:-1] != inside[:-1, 1:-1]).T
    x, top, bottom = _runs((inside[1:-1, 1:] != inside[1:-1, :-1]).T).T
    horizontal = np.stack([left, y, right, y], axis=1)
    vertical = np.stack([x, top, x, bottom], axis=1)
    return np.concatenate([horizontal, vertical]).reshape(-1, 2, 2)


def _runs(edges: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return row, start and end of each run of True values in the rows of ``edges``."""
    change = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]  # in the same order as ``starts``
    return np.stack([lines, starts, ends], axis=1)


@dataclass(frozen=True)
class Region:
    """Region of a grid: cells that are connected through common edges.

    Attributes:
        polygon: Outline and holes of the region, in columns (x) and rows (y) of the grid.
        cells: Row and column of each cell, shape (N, 2).
    """

    polygon: shapely.Polygon
    cells: NDArray[np.int64]


def label_regions(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the regions of a mask from 1; return the number at each cell, shape (rows, cols).

    Cells outside the mask have the number 0. Cells that share an edge are in one region. Cells that
    touch only at a corner are in two regions: an outline around both would touch itself and be an
    invalid polygon.
    """
    return ndimage.label(mask)[0]


def extract_regions(mask: NDArray[np.bool_]) -> list[Region]:
    """Return the regions of a mask, from the largest to the smallest.

    Shapely computes the outlines. OpenCV's findContours would join cells that touch at a corner,
    draw lines through the middle of cells and cut the corners of holes.

    Args:
        mask: Whether each cell is inside, shape (rows, cols).
    """
    cells = np.argwhere(mask)
    owner = label_regions(mask)[mask]
    order = np.argsort(owner, kind="stable")
    bounds = np.cumsum(np.bincount(owner)[1:])[:-1]
    parts = np.split(cells[order], bounds) if len(cells) else []
    parts.sort(key=len, reverse=True)
    return [Region(_outline(part), part) for part in parts]


def _outline(cells: NDArray[np.int64]) -> shapely.Polygon:
    rows, cols = cells.T
    outline = shapely.coverage_union_all(shapely.box(cols, rows, cols + 1, rows + 1))
    return outline.simplify(0)  # removes the points on straight edges


def largest_region(
    called: NDArray[np.bool_], row_col: NDArray[np.int32], area: NDArray[np.float32]
) -> float:
    """Return the area of the largest region of patches that are called IDC.

    If no patch is called IDC, the area is 0.

    Args:
        called: Whether each patch is called IDC, shape (N,).
        row_col: Row and column of each patch, shape (N, 2).
        area: Area of the cell of each patch, shape (N,).
    """
    if not called.any():
        return 0.0
    shape = shape_of(row_col)
    grid = scatter_to_grid(called, row_col, shape=shape, fill=False)
    areas = scatter_to_grid(area, row_col, shape=shape, fill=0.0)
    return float(np.bincount(label_regions(grid)[grid], areas[grid]).max())
