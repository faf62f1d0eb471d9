"""Tiling of a slide into patches, as pure geometry: numbers in, numbers out.

A patch has ``patch_px`` pixels of the model's ``mpp`` per side. Cell (row, col) of the grid starts
``row * stride_px`` and ``col * stride_px`` of these pixels from the corner of the slide. Each
position is computed from this product and rounded once, so rounding errors do not add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

# Files state rounded mpp: a level within this tolerance is fine enough.
MPP_TOLERANCE = 0.01
# A level within this tolerance is used without resampling.
_NATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Grid:
    """A grid of patches over a slide.

    Attributes:
        rows, cols: Size of the grid, which covers the complete slide.
        patch_px: Side of a patch in px of ``mpp``.
        stride_px: Distance between neighboring patches in px of ``mpp``.
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
        """Return row and column of each cell, by row, shape (rows * cols, 2), int32."""
        return np.indices((self.rows, self.cols), np.int32).reshape(2, -1).T.copy()

    def coords(self, row_col: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return level-0 x and y of the top left corners of cells, shape (N, 2), int32."""
        return np.rint(self._starts(row_col[:, ::-1]) * self.mpp / self.slide_mpp).astype(np.int32)

    def edges(self, cells: NDArray[np.int32], *, mpp: float) -> NDArray[np.int64]:
        """Return start and end px of cells along one axis of a level.

        Args:
            cells: Rows or columns, shape (N,).
            mpp: Microns per px of the level.

        Returns:
            Shape (N, 2), int64. Neighbors share an edge; on a level that needs no resampling, a
            cell has exactly ``patch_px`` px.
        """
        starts = self._starts(cells)
        first = np.rint(starts * self.mpp / mpp).astype(np.int64)
        if is_native(mpp, self.mpp):
            end = first + self.patch_px
        else:
            end = np.rint((starts + self.patch_px) * self.mpp / mpp).astype(np.int64)
        return np.stack([first, end], axis=1)

    def _starts(self, cells: NDArray[np.int32]) -> NDArray[np.int64]:
        return cells.astype(np.int64) * self.stride_px


def make_grid(
    width: int, height: int, *, slide_mpp: float, patch_px: int, mpp: float, stride_px: int
) -> Grid:
    """Return the smallest grid from (0, 0) that covers a slide of ``width`` x ``height`` px.

    It includes patches that extend beyond the right and the bottom edge.

    Raises:
        ValueError: The stride leaves gaps, or the grid is larger than on any slide.
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
            f"a grid of {rows} x {cols} patches; at most {MAX_CELLS_PER_SIDE} per side are possible"
        )
    return Grid(rows, cols, patch_px, stride_px, mpp, slide_mpp)


def _num_cells(side: float, patch_px: int, stride_px: int, *, half_px: float) -> int:
    """Return the number of patches that cover ``side`` px of the model, up to ``half_px``."""
    return max(1, math.ceil((side - half_px - patch_px) / stride_px) + 1)


def is_native(level_mpp: float, mpp: float) -> bool:
    """Return whether a level has the resolution ``mpp`` and needs no resampling."""
    return abs(level_mpp / mpp - 1) <= _NATIVE_TOLERANCE


def choose_level(level_mpps: Sequence[float], mpp: float) -> int:
    """Return the index of the coarsest level that is at least as fine as ``mpp``.

    If all levels are coarser, it is the finest level.
    """
    fine = [i for i, level in enumerate(level_mpps) if level <= mpp * (1 + MPP_TOLERANCE)]
    if not fine:
        return int(np.argmin(level_mpps))
    return max(fine, key=lambda i: level_mpps[i])


def choose_thumbnail_level(widths: Sequence[int], width: int) -> int:
    """Return the index of the smallest level that is at least ``width`` px wide."""
    return min((level, i) for i, level in enumerate(widths) if level >= width)[1]


def fit_size(width: int, height: int, *, max_side: int) -> tuple[int, int]:
    """Return width and height scaled down so that the longer one is at most ``max_side``."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def split_range(length: int, *, step: int) -> list[tuple[int, int]]:
    """Return start and end of consecutive intervals of ``step`` that cover 0 to ``length``."""
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def group_reads(
    rows: NDArray[np.int32], edges: NDArray[np.int64], *, max_width: int, max_gap: int
) -> list[slice]:
    """Group patches, in grid order, that are read together.

    Args:
        rows: Grid row of each patch, shape (N,).
        edges: Start and end px of each patch along x, shape (N, 2).
        max_width: Maximum width of a group in px, except for a single wider patch.
        max_gap: Maximum gap between the patches of a group in px.

    Returns:
        Consecutive slices, each within one grid row.
    """
    groups = []
    start = 0
    for end in range(1, len(rows) + 1):
        if (
            end < len(rows)
            and rows[end] == rows[start]
            and edges[end, 1] - edges[start, 0] <= max_width
            and edges[end, 0] - edges[end - 1, 1] <= max_gap
        ):
            continue
        groups.append(slice(start, end))
        start = end
    return groups if len(rows) else []


def tissue_fraction(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fraction of each box that is set in a mask.

    Args:
        mask: Shape (h, w).
        boxes: Left, top, right, bottom as fractions of the mask's width and height, shape (N, 4);
            the area outside the mask is not set.

    Returns:
        Fractions 0..1, shape (N,), float64; px on the border of a box count in part.
    """
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
    x = np.clip(boxes[:, [0, 2]], 0, 1) * width
    y = np.clip(boxes[:, [1, 3]], 0, 1) * height
    (left, right), (top, bottom) = x.T, y.T
    area = (boxes[:, 2] - boxes[:, 0]) * width * (boxes[:, 3] - boxes[:, 1]) * height
    return (
        _interpolate(sums, bottom, right)
        - _interpolate(sums, top, right)
        - _interpolate(sums, bottom, left)
        + _interpolate(sums, top, left)
    ) / area


def _interpolate(
    sums: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate the sums over [0, y) x [0, x); exact, since a mask is constant within a px."""
    row = np.minimum(y.astype(int), sums.shape[0] - 2)
    col = np.minimum(x.astype(int), sums.shape[1] - 2)
    down, along = y - row, x - col
    above = sums[row, col] * (1 - along) + sums[row, col + 1] * along
    below = sums[row + 1, col] * (1 - along) + sums[row + 1, col + 1] * along
    return above * (1 - down) + below * down
