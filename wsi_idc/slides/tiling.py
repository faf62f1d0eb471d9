"""Where the patches of a slide lie, as pure geometry: numbers in, numbers out.

A patch is ``patch_px`` pixels of the model's ``mpp`` a side. Cell (row, col) of the grid begins
``row * stride_px`` and ``col * stride_px`` of those pixels from the slide's corner. Every place is
computed from that product and rounded once, so that nothing drifts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

# Files state mpp with rounding: a level as near as this to the wanted mpp is as fine as wanted.
MPP_TOLERANCE = 0.01
# As near as this its pixels are those of the model.
SAME = 1e-3


@dataclass(frozen=True)
class Grid:
    """A grid of patches over a slide.

    Attributes:
        rows, cols: Of the whole grid, which covers every px of the slide.
        patch_px, stride_px: Side of a patch, and from one to the next, in px of ``mpp``.
        mpp: Microns per px of a patch.
        slide_mpp: Microns per level-0 px.
    """

    rows: int
    cols: int
    patch_px: int
    stride_px: int
    mpp: float
    slide_mpp: float

    def cells(self) -> NDArray[np.int32]:
        """Return row and column of every cell, row by row, shape (rows * cols, 2), int32."""
        return np.indices((self.rows, self.cols), np.int32).reshape(2, -1).T.copy()

    def coords(self, row_col: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return level-0 x and y of the top left corner of cells, shape (N, 2), int32."""
        return np.rint(self._starts(row_col[:, ::-1]) * self.mpp / self.slide_mpp).astype(np.int32)

    def edges(self, cells: NDArray[np.int32], *, mpp: float) -> NDArray[np.int64]:
        """Return first and end px of cells along one axis on a level of ``mpp``.

        Args:
            cells: Rows or columns, shape (N,).
            mpp: Microns per px of the level.

        Returns:
            Shape (N, 2), int64. Neighbours share an edge; where the level has the pixels of the
            model, a patch has exactly ``patch_px`` of them.
        """
        starts = self._starts(cells)
        first = np.rint(starts * self.mpp / mpp).astype(np.int64)
        if has_pixels_of(mpp, self.mpp):
            end = first + self.patch_px
        else:
            end = np.rint((starts + self.patch_px) * self.mpp / mpp).astype(np.int64)
        return np.stack([first, end], axis=1)

    def _starts(self, cells: NDArray[np.int32]) -> NDArray[np.int64]:
        return cells.astype(np.int64) * self.stride_px


def make_grid(
    width: int, height: int, *, slide_mpp: float, patch_px: int, mpp: float, stride_px: int
) -> Grid:
    """Lay the smallest grid from (0, 0) that covers a slide of ``width`` x ``height`` px.

    Patches that stand out over the right and bottom edge belong to it.

    Raises:
        ValueError: The stride leaves gaps, or there are more cells a side than on any slide.
    """
    if not 1 <= stride_px <= patch_px:
        raise ValueError(
            f"a stride of {stride_px} px; patches of {patch_px} px need 1 to {patch_px}"
        )
    rows, cols = (
        _num_cells(side * slide_mpp / mpp, patch_px, stride_px, half_px=slide_mpp / mpp / 2)
        for side in (height, width)
    )
    if max(rows, cols) > MAX_CELLS_PER_SIDE:
        raise ValueError(
            f"a grid of {rows} x {cols} patches, where {MAX_CELLS_PER_SIDE} a side are the most"
        )
    return Grid(rows, cols, patch_px, stride_px, mpp, slide_mpp)


def _num_cells(side: float, patch_px: int, stride_px: int, *, half_px: float) -> int:
    """Return how many patches cover ``side`` px of the model, but for half a level-0 px."""
    return max(1, math.ceil((side - half_px - patch_px) / stride_px) + 1)


def has_pixels_of(level_mpp: float, mpp: float) -> bool:
    """Return whether a level can be used as it is, without resampling."""
    return abs(level_mpp / mpp - 1) <= SAME


def choose_level(level_mpps: Sequence[float], mpp: float) -> int:
    """Return the coarsest level that is as fine as ``mpp``, else the finest."""
    fine = [at for at, level in enumerate(level_mpps) if level <= mpp * (1 + MPP_TOLERANCE)]
    if not fine:
        return int(np.argmin(level_mpps))
    return max(fine, key=lambda at: level_mpps[at])


def choose_thumbnail_level(widths: Sequence[int], width: int) -> int:
    """Return the level with the fewest px that are still ``width`` or more."""
    return min((has, at) for at, has in enumerate(widths) if has >= width)[1]


def fit_size(width: int, height: int, *, max_side: int) -> tuple[int, int]:
    """Return width and height scaled down so that the longer one is at most ``max_side``."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def split_range(length: int, *, step: int) -> list[tuple[int, int]]:
    """Return start and end of pieces of ``step`` that make up ``length``."""
    return [(at, min(at + step, length)) for at in range(0, length, step)]


def group_reads(
    rows: NDArray[np.int32], edges: NDArray[np.int64], *, max_width: int, max_gap: int
) -> list[slice]:
    """Cut patches, in grid order, into runs that are read at one go.

    Args:
        rows: Grid row of each patch, shape (N,).
        edges: First and end px of each patch along x, shape (N, 2).
        max_width: A run is no wider, in px, unless a single patch is.
        max_gap: Nor does it hold a gap between patches that is wider.

    Returns:
        Slices that follow each other, each within one grid row.
    """
    found = []
    start = 0
    for at in range(1, len(rows) + 1):
        if (
            at < len(rows)
            and rows[at] == rows[start]
            and edges[at, 1] - edges[start, 0] <= max_width
            and edges[at, 0] - edges[at - 1, 1] <= max_gap
        ):
            continue
        found.append(slice(start, at))
        start = at
    return found if len(rows) else []


def tissue_fraction(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return which share of each box is set in a mask.

    Args:
        mask: Shape (h, w).
        boxes: Left, top, right, bottom as shares of the mask's width and height, shape (N, 4);
            what stands out over the mask is not set.

    Returns:
        Shares 0..1, shape (N,), float64; px that a box cuts count in part.
    """
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
    x = np.clip(boxes[:, [0, 2]], 0, 1) * width
    y = np.clip(boxes[:, [1, 3]], 0, 1) * height
    (left, right), (top, bottom) = x.T, y.T
    area = (boxes[:, 2] - boxes[:, 0]) * width * (boxes[:, 3] - boxes[:, 1]) * height
    within = (
        _between(sums, bottom, right)
        - _between(sums, top, right)
        - _between(sums, bottom, left)
        + _between(sums, top, left)
    )
    return within / area


def _between(
    sums: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate sums over [0, y) x [0, x): exact, since a mask is constant within a px."""
    row = np.minimum(y.astype(int), sums.shape[0] - 2)
    col = np.minimum(x.astype(int), sums.shape[1] - 2)
    down, along = y - row, x - col
    above = sums[row, col] * (1 - along) + sums[row, col + 1] * along
    below = sums[row + 1, col] * (1 - along) + sums[row + 1, col + 1] * along
    return above * (1 - down) + below * down
