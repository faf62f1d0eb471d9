"""The patient's grid as pure geometry: numbers in, numbers out, no file and no torch.

Arrays are [row, col]; ``x, y`` are level-0 pixels, 0-based, of a patch's top left corner.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Far beyond any glass slide (75 mm are 375 cells of 200 um); keeps a forged coordinate from asking
# for terabytes.
MAX_CELLS_PER_SIDE = 2_000
# Patches at least so far from a label border are interior.
INTERIOR = 2


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


def scatter_to_grid(
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


def cell_centers_um(count: int, *, step_um: float, origin_um: float = 0.0) -> NDArray[np.float64]:
    """Return the centres of ``count`` cells of ``step_um`` along one axis, in um from the edge."""
    return origin_um + (np.arange(count, dtype=np.float64) + 0.5) * step_um


def crop_center(blocks: NDArray, *, share: float) -> NDArray:
    """Return the middle of each block, ``share`` of each side, by area.

    Args:
        blocks: Shape (N, h, w).
        share: Above 0, at most 1; 1 returns the blocks themselves.

    Returns:
        Shape (N, h', w') with h' the nearest whole number to ``share`` h, at least 1; of
        ``blocks``' dtype.
    """
    if share == 1:
        return blocks
    rows, cols = (_center_weights(side, share).astype(blocks.dtype) for side in blocks.shape[1:])
    return rows @ blocks @ cols.T


def _center_weights(side: int, share: float) -> NDArray[np.float64]:
    """Return how much of each of ``side`` cells is in each cell of the middle, shape (n, side)."""
    num = max(1, round(side * share))
    edges = side * ((1 - share) / 2 + share * np.arange(num + 1) / num)
    cells = np.arange(side)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    overlap = np.maximum(overlap, 0)
    weights: NDArray[np.float64] = overlap / overlap.sum(axis=1, keepdims=True)
    return weights


def border_distance(label: NDArray[np.integer], row_col: NDArray[np.int32]) -> NDArray[np.int8]:
    """Return how many patches lie between each patch and the nearest one of the other label.

    Counted as a king moves, diagonally too: 0 at the label border, up to ``INTERIOR`` from there
    on, also where there is no other label. Cells without a patch are neither.

    Args:
        label: 0 or 1, shape (N,).
        row_col: Cells of one patient, shape (N, 2).

    Returns:
        Shape (N,), int8.
    """
    grid = scatter_to_grid(label.astype(np.int8), row_col, shape=shape_of(row_col), fill=-1)
    distance = np.full(len(label), INTERIOR, np.int8)
    for own, other in ((0, 1), (1, 0)):
        if (label == other).any():
            steps = ndimage.distance_transform_cdt(grid != other, "chessboard")
            members = label == own
            found = steps[row_col[members, 0], row_col[members, 1]] - 1
            distance[members] = np.minimum(found, INTERIOR)
    return distance


def smooth(
    values: NDArray[np.floating], row_col: NDArray[np.int32], *, sigma: float
) -> NDArray[np.float64]:
    """Return the mean of each patch's value and its neighbours', by a Gaussian of the distance.

    Cells without a patch weigh nothing (normalised convolution, Knutsson & Westin 1993).

    Args:
        values: One value a patch of one patient, shape (N,).
        row_col: Cells, shape (N, 2).
        sigma: Standard deviation of the Gaussian in cells; 0 changes nothing.

    Returns:
        Shape (N,).
    """
    if sigma == 0:
        return values.astype(np.float64)
    shape = shape_of(row_col)
    weight = scatter_to_grid(np.ones(len(values)), row_col, shape=shape, fill=0)
    total = scatter_to_grid(values.astype(np.float64), row_col, shape=shape, fill=0)
    blurred, weights = (
        ndimage.gaussian_filter(grid, sigma, mode="constant") for grid in (total, weight)
    )
    cells = row_col[:, 0], row_col[:, 1]
    return blurred[cells] / weights[cells]
