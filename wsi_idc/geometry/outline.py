"""The outline of some of a grid's cells as pure geometry: a mask in, straight lines out."""

import numpy as np
from numpy.typing import NDArray


def outline(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the border of the cells that are set, along the edges of cells.

    Args:
        mask: Cells, shape (rows, cols).

    Returns:
        Lines as long as they can be, shape (N, 2, 2): two ends, each x, y in cells from the top
        left corner of the grid. First the horizontal ones from top to bottom, then the vertical
        ones from left to right.
    """
    inside = np.pad(mask, 1)
    across = _runs(inside[1:, 1:-1] != inside[:-1, 1:-1])  # y, x from, x to
    down = _runs((inside[1:-1, 1:] != inside[1:-1, :-1]).T)  # x, y from, y to
    y, left, right = across.T
    x, top, bottom = down.T
    horizontal = np.stack([left, y, right, y], axis=1)
    vertical = np.stack([x, top, x, bottom], axis=1)
    return np.concatenate([horizontal, vertical]).reshape(-1, 2, 2)


def _runs(edges: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return line, start and end of each run of set edges in the rows of ``edges``."""
    change = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]  # as many and in the same order as the starts
    return np.stack([lines, starts, ends], axis=1)
