"""Geometry of a patient's grid of patches: cells, mosaics, border distances, smoothing.

Arrays have the axes [row, col]. ``x, y`` is the top left corner of a patch in level-0 pixels,
counted from 0.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Larger than any glass slide: 75 mm are 375 cells of 200 um. Without this limit, a forged
# coordinate could allocate terabytes.
MAX_CELLS_PER_SIDE = 2_000
# A patch is interior if its distance from the label border is at least this many patches.
INTERIOR = 2
# Squared distances, in cells, of the rings of ``ring_means``.
RINGS = (0, 1, 2, 4, 5, 8)
_RING_RADIUS = 2


def cells_of(xy: NDArray[np.int32], *, patch_px: int) -> NDArray[np.int32]:
    """Return the grid cell of each patch.

    Args:
        xy: Top left corners in px, shape (N, 2), multiples of ``patch_px``.
        patch_px: Side of a patch in px.

    Returns:
        Row and column of each patch, shape (N, 2), int32.
    """
    return (xy[:, ::-1] // patch_px).astype(np.int32)


def corners_of(
    row_col: NDArray[np.int32], *, stride_px: int, mpp: float, slide_mpp: float
) -> NDArray[np.int32]:
    """Return the top left corner of each cell of a grid on a slide.

    Always use this function: another order of the operations can round a corner to another pixel.

    Args:
        row_col: Row and column of each cell, shape (N, 2).
        stride_px: Side of a cell in px of a patch.
        mpp: Microns per px of a patch.
        slide_mpp: Microns per level-0 px.

    Returns:
        x, y of each corner in level-0 px, shape (N, 2), int32.
    """
    corners = row_col[:, ::-1].astype(np.int64) * stride_px * mpp / slide_mpp
    return np.rint(corners).astype(np.int32)


def shape_of(row_col: NDArray[np.int32]) -> tuple[int, int]:
    """Return (rows, cols) of the smallest grid that starts at (0, 0) and contains all cells.

    Raises:
        ValueError: There is no cell, an index is negative, or the grid is larger than any slide.
    """
    if len(row_col) == 0 or row_col.min() < 0:
        raise ValueError("a grid needs at least one cell, and no negative row or column")
    rows, cols = (int(last) + 1 for last in row_col.max(axis=0))
    if max(rows, cols) > MAX_CELLS_PER_SIDE:
        raise ValueError(f"a grid of {rows} x {cols} cells is larger than any slide")
    return rows, cols


def scatter_to_grid(
    values: NDArray, row_col: NDArray[np.int32], *, shape: tuple[int, int], fill: float
) -> NDArray:
    """Put one value per patch on the grid.

    Args:
        values: One value per patch, shape (N,).
        row_col: Row and column of each patch, shape (N, 2).
        shape: Numbers of rows and columns of the grid.
        fill: Value of cells without a patch.

    Returns:
        The grid, shape (rows, cols), with the dtype of ``values``.
    """
    grid = np.full(shape, fill, dtype=values.dtype)
    grid[tuple(row_col.T)] = values
    return grid


def mosaic(
    blocks: NDArray, row_col: NDArray[np.int32], *, shape: tuple[int, int], fill: float
) -> NDArray:
    """Put one image per patch on the grid, side by side.

    Args:
        blocks: One image per patch, shape (N, h, w) or (N, h, w, channels).
        row_col: Row and column of each patch, shape (N, 2).
        shape: Numbers of rows and columns of the grid.
        fill: Value of cells without a patch.

    Returns:
        The mosaic, shape (rows * h, cols * w[, channels]), with the dtype of ``blocks``.
    """
    rows, cols = shape
    _, height, width, *channels = blocks.shape
    grid = np.full((rows, height, cols, width, *channels), fill, dtype=blocks.dtype)
    grid[row_col[:, 0], :, row_col[:, 1]] = blocks
    return grid.reshape(rows * height, cols * width, *channels)


def cell_centers_um(count: int, *, step_um: float, origin_um: float = 0.0) -> NDArray[np.float64]:
    """Return the positions in um of the centers of ``count`` cells; a cell is ``step_um`` wide."""
    return origin_um + (np.arange(count, dtype=np.float64) + 0.5) * step_um


def crop_center(blocks: NDArray, *, fraction: float) -> NDArray:
    """Crop each block around its center. A side of the crop is ``fraction`` of the block's side.

    Each value of a crop is the mean of the block values that it covers, weighted by the overlap.

    Args:
        blocks: Blocks of cells, shape (N, h, w).
        fraction: Number above 0 and at most 1. With 1, the function returns ``blocks`` itself.

    Returns:
        Crops, shape (N, h', w'), with the dtype of ``blocks``. h' is ``fraction`` times h, rounded
        and at least 1; w' is computed from w in the same way.
    """
    if fraction == 1:
        return blocks
    rows, cols = (_center_weights(side, fraction).astype(blocks.dtype) for side in blocks.shape[1:])
    return rows @ blocks @ cols.T


def _center_weights(side: int, fraction: float) -> NDArray[np.float64]:
    """Return the weights of the block cells (columns) in each crop cell (row) along one axis.

    ``side`` is the number of block cells.
    """
    num = max(1, round(side * fraction))
    edges = side * ((1 - fraction) / 2 + fraction * np.arange(num + 1) / num)
    cells = np.arange(side)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    overlap = np.maximum(overlap, 0)
    return np.divide(overlap, overlap.sum(axis=1, keepdims=True))


def border_distance(label: NDArray[np.integer], row_col: NDArray[np.int32]) -> NDArray[np.int8]:
    """Count the cells between each patch and the nearest patch of the other label.

    A diagonal step counts 1, as in the Chebyshev distance. Cells without a patch are counted too. A
    patch that touches a patch of the other label has the count 0. The largest count is
    ``INTERIOR``. If all patches have the same label, all counts are ``INTERIOR``.

    Args:
        label: Label of each patch, 0 or 1, shape (N,).
        row_col: Row and column of each patch of one patient, shape (N, 2).

    Returns:
        Count of each patch, shape (N,), int8.
    """
    grid = scatter_to_grid(label.astype(np.int8), row_col, shape=shape_of(row_col), fill=-1)
    distance = np.full(len(label), INTERIOR, np.int8)
    for own, other in ((0, 1), (1, 0)):
        if (label == other).any():
            steps = ndimage.distance_transform_cdt(grid != other, "chessboard")
            members = label == own
            between = steps[tuple(row_col[members].T)] - 1
            distance[members] = np.minimum(between, INTERIOR)
    return distance


def ring_means(
    values: NDArray[np.floating], row_col: NDArray[np.int32], *, step: int = 1
) -> NDArray[np.float64]:
    """Average the values of the patches in rings around each patch of one slide.

    A ring is all cells at the same distance from the central patch; ``RINGS`` lists the squared
    distances. If a ring has no patch, its mean is the value of the central patch. If the grid is
    flipped or turned by 90 degrees, the means do not change.

    Args:
        values: One value per patch, shape (N,).
        row_col: Row and column of each patch, shape (N, 2).
        step: Factor by which all distances are multiplied.

    Returns:
        Means, shape (N, len(RINGS)), float64. The first column is ``values``.
    """
    shape = shape_of(row_col)
    grid = scatter_to_grid(values.astype(np.float64), row_col, shape=shape, fill=np.nan)
    # The grid has an empty margin, so that cells outside of the grid are NaN.
    margin = min(_RING_RADIUS * step, max(shape))
    grid = np.pad(grid, margin, constant_values=np.nan)
    means = np.empty((len(values), len(RINGS)))
    for number, offsets in enumerate(_ring_offsets()):
        # No cell of the grid is farther away than the margin.
        moves = np.clip(step * offsets, -margin, margin)
        neighbors = np.stack([grid[tuple((row_col + margin + move).T)] for move in moves])
        is_patch = ~np.isnan(neighbors)
        counts = is_patch.sum(axis=0)
        sums = np.where(is_patch, neighbors, 0).sum(axis=0)
        means[:, number] = np.where(counts > 0, sums / np.maximum(counts, 1), values)
    return means


def _ring_offsets() -> list[NDArray[np.int64]]:
    """Return one array per ring: the row and column offsets of its n cells, shape (n, 2)."""
    rows, cols = np.mgrid[-_RING_RADIUS : _RING_RADIUS + 1, -_RING_RADIUS : _RING_RADIUS + 1]
    offsets = np.stack([rows.ravel(), cols.ravel()], axis=1)
    return [offsets[(offsets**2).sum(axis=1) == squared] for squared in RINGS]


def neighbor_fraction(row_col: NDArray[np.int32]) -> NDArray[np.float64]:
    """Compute the fraction of the 8 cells around each patch that have a patch.

    Returns:
        Fraction for each patch, shape (N,).
    """
    inside = row_col + 1
    rows, cols = shape_of(inside)
    shape = (rows + 1, cols + 1)
    grid = scatter_to_grid(np.ones(len(row_col)), inside, shape=shape, fill=0)
    return (ndimage.uniform_filter(grid, 3, mode="constant")[tuple(inside.T)] * 9 - 1) / 8


def smooth(
    values: NDArray[np.floating], row_col: NDArray[np.int32], *, sigma: float
) -> NDArray[np.float64]:
    """Smooth the values of one patient's patches with a Gaussian filter on the grid.

    Cells without a patch have no weight (normalized convolution, Knutsson & Westin 1993).

    Args:
        values: One value per patch, shape (N,).
        row_col: Row and column of each patch, shape (N, 2).
        sigma: Standard deviation of the Gaussian filter in cells; 0 changes nothing.

    Returns:
        Smoothed value of each patch, shape (N,), float64.
    """
    if sigma == 0:
        return values.astype(np.float64)

    def blurred(part: NDArray[np.float64]) -> NDArray[np.float64]:
        grid = scatter_to_grid(part, row_col, shape=shape_of(row_col), fill=0)
        return ndimage.gaussian_filter(grid, sigma, mode="constant")[tuple(row_col.T)]

    return blurred(values.astype(np.float64)) / blurred(np.ones(len(values)))
