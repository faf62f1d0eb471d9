"""The patient's grid as pure geometry: numbers in, numbers out, no file and no torch.

Arrays are [row, col]; ``x, y`` are level-0 pixels, 0-based, of a patch's top left corner.
"""

import numpy as np
from numpy.typing import NDArray

# Far beyond any glass slide (75 mm are 375 cells of 200 um); keeps a forged coordinate from asking
# for terabytes.
MAX_CELLS_PER_SIDE = 2_000


def cells_of(xy: NDArray[np.int32], *, patch_px: int) -> NDArray[np.int32]:
    """Return the grid cell of each patch.

    Args:
        xy: Top left corners in px, shape (N, 2), multiples of ``patch_px``.
        patch_px: Side of a patch in px.

    Returns:
        Row and column, shape (N, 2), int32.
    """
    return (xy[:, ::-1] // patch_px).astype(np.int32)


def shape_of(row_col: NDArray[np.int32]) -> tuple[int, int]:
    """Return rows and cols of the smallest grid from cell (0, 0) that holds every cell.

    Raises:
        ValueError: There is no cell, one is negative, or the grid is larger than any slide.
    """
    if len(row_col) == 0 or row_col.min() < 0:
        raise ValueError("a grid needs at least one cell and no negative ones")
    rows, cols = (int(last) + 1 for last in row_col.max(axis=0))
    if max(rows, cols) > MAX_CELLS_PER_SIDE:
        raise ValueError(f"a grid of {rows} x {cols} cells is larger than any slide")
    return rows, cols


def lay(
    values: NDArray, row_col: NDArray[np.int32], *, shape: tuple[int, int], fill: float
) -> NDArray:
    """Lay one value a patch on the grid.

    Args:
        values: One value a patch, shape (N,).
        row_col: Cells, shape (N, 2).
        shape: Rows and cols.
        fill: What stands in a cell without a patch.

    Returns:
        The grid, shape (rows, cols), of ``values``' dtype.
    """
    grid = np.full(shape, fill, dtype=values.dtype)
    grid[row_col[:, 0], row_col[:, 1]] = values
    return grid


def mosaic(
    blocks: NDArray, row_col: NDArray[np.int32], *, shape: tuple[int, int], fill: float
) -> NDArray:
    """Lay one picture a patch on the grid, side by side.

    Args:
        blocks: One picture a patch, shape (N, h, w) or (N, h, w, channels).
        row_col: Cells, shape (N, 2).
        shape: Rows and cols.
        fill: What stands in a cell without a patch.

    Returns:
        The mosaic, shape (rows * h, cols * w[, channels]), of ``blocks``' dtype.
    """
    rows, cols = shape
    _, height, width, *channels = blocks.shape
    grid = np.full((rows, height, cols, width, *channels), fill, dtype=blocks.dtype)
    grid[row_col[:, 0], :, row_col[:, 1]] = blocks
    return grid.reshape(rows * height, cols * width, *channels)


def centres_um(count: int, *, step_um: float) -> NDArray[np.float64]:
    """Return the centres of ``count`` cells of ``step_um`` along one axis, in um from the edge."""
    return (np.arange(count, dtype=np.float64) + 0.5) * step_um
