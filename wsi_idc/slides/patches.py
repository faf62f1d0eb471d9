"""Cut a slide into patches with the size and resolution of a model.

Each side of a patch has ``patch_px`` pixels. A pixel of a patch is ``mpp`` microns wide. The patch
of grid cell (row, col) starts ``row * stride_px`` pixels below and ``col * stride_px`` pixels right
of the top left corner of the slide. Each position is computed from this product and rounded once,
so rounding errors do not add up.
"""

import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_idc.core.errors import SlideError
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE, corners_of
from wsi_idc.runtime.prefetch import prefetch, rebatch
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tissue import find_tissue

logger = logging.getLogger(__name__)

MIN_TISSUE = 0.1  # default for the minimum fraction of tissue in a patch
# Maximum ratio of slide mpp to model mpp: a coarser slide lacks structures that the model needs.
_MAX_UPSAMPLING = 1.5
_MAX_READ_PX = 2**21  # maximum size of one read; a read takes up to 8 bytes of memory per px
# Maximum gap between two patches of one read. If the gap has two storage tiles of 256 px or more,
# two reads are faster.
_MAX_GAP_PX = 512
# Slide files state rounded mpp: the mpp of a level may be too large by this fraction.
_MPP_TOLERANCE = 0.01
# A level whose mpp is within this relative tolerance is used without resampling.
_NATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Grid:
    """A grid of patches over a slide.

    Attributes:
        rows, cols: Number of rows and columns; the grid covers the complete slide.
        patch_px: Side of a patch in px.
        stride_px: Distance between neighboring patches in px of a patch.
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
        """Return (row, col) of all cells, row after row, shape (rows * cols, 2), int32."""
        return np.indices((self.rows, self.cols), np.int32).reshape(2, -1).T.copy()

    def coords(self, row_col: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return x, y of the top left corner of each cell in level-0 px, shape (N, 2), int32."""
        return corners_of(row_col, stride_px=self.stride_px, mpp=self.mpp, slide_mpp=self.slide_mpp)

    def edges(self, cells: NDArray[np.int32], *, mpp: float) -> NDArray[np.int64]:
        """Return the start and end of each cell's patch along one axis, in px of a level.

        Args:
            cells: Row numbers or column numbers of the cells, shape (N,).
            mpp: Microns per px of the level.

        Returns:
            Starts and ends, shape (N, 2), int64. If patches do not overlap, a patch starts where
            the previous patch ends. If patches are not resampled, a patch has ``patch_px`` px.
        """
        starts = cells.astype(np.int64) * self.stride_px
        first = np.rint(starts * self.mpp / mpp).astype(np.int64)
        if is_native(mpp, self.mpp):
            end = first + self.patch_px
        else:
            end = np.rint((starts + self.patch_px) * self.mpp / mpp).astype(np.int64)
        return np.stack([first, end], axis=1)


def make_grid(
    width: int, height: int, *, slide_mpp: float, patch_px: int, mpp: float, stride_px: int
) -> Grid:
    """Return the smallest grid that begins at (0, 0) and covers ``width`` x ``height`` level-0 px.

    The last patches may extend beyond the right and the bottom edge of the slide.

    Raises:
        ValueError: The stride is below 1 or leaves gaps, or the grid is too large for any slide.
    """
    if not 1 <= stride_px <= patch_px:
        raise ValueError(
            f"a stride of {stride_px} px is not between 1 and the patch size, {patch_px} px"
        )
    half_px = slide_mpp / mpp / 2  # half a level-0 px; an uncovered strip of this width is ignored
    rows, cols = (
        max(1, math.ceil((side * slide_mpp / mpp - half_px - patch_px) / stride_px) + 1)
        for side in (height, width)
    )
    if max(rows, cols) > MAX_CELLS_PER_SIDE:
        raise ValueError(
            f"a grid of {rows} x {cols} patches is too large; a side has at most "
            f"{MAX_CELLS_PER_SIDE} patches"
        )
    return Grid(rows, cols, patch_px, stride_px, mpp, slide_mpp)


def is_native(level_mpp: float, mpp: float) -> bool:
    """Return whether a level has the resolution ``mpp``; if so, patches are not resampled."""
    return abs(level_mpp / mpp - 1) <= _NATIVE_TOLERANCE


def choose_level(level_mpps: Sequence[float], mpp: float) -> int:
    """Return the index of the coarsest level that is not coarser than ``mpp``.

    If all levels are coarser than ``mpp``, return the index of the finest level.
    """
    fine = [i for i, level in enumerate(level_mpps) if level <= mpp * (1 + _MPP_TOLERANCE)]
    return max(fine, key=lambda i: level_mpps[i]) if fine else int(np.argmin(level_mpps))


def group_reads(
    rows: NDArray[np.int32], edges: NDArray[np.int64], *, max_width: int, max_gap: int
) -> list[slice]:
    """Divide patches into groups; each group is read in one call. The patches are in grid order.

    Args:
        rows: Grid row of each patch, shape (N,).
        edges: Start and end px of each patch along x, shape (N, 2).
        max_width: Maximum width of a group in px; a single patch may be wider.
        max_gap: Maximum gap in px between neighboring patches of a group.

    Returns:
        A slice of the patches for each group. All patches of a group are in one grid row.
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
    """Return the fraction of each box in which a mask is True.

    Args:
        mask: Mask, shape (h, w), bool; the area outside the mask counts as False.
        boxes: Left, top, right, bottom as fractions of the mask's width and height, shape (N, 4).

    Returns:
        Fractions 0..1, shape (N,), float64. If a box contains only a part of a px, only this part
        counts.
    """
    height, width = mask.shape
    left, top, right, bottom = (boxes * [width, height, width, height]).T
    # Linear interpolation of the sums is exact, because the mask is constant within a px.
    sums = cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)
    y = np.clip([bottom, top, bottom, top], 0, height)
    x = np.clip([right, right, left, left], 0, width)
    corners = ndimage.map_coordinates(sums, [y, x], order=1, mode="nearest")
    return (corners[0] - corners[1] - corners[2] + corners[3]) / ((right - left) * (bottom - top))


class SlidePatches:
    """Patches with tissue in a slide, sorted by row, then by column of the grid.

    Args:
        slide: The slide; it must stay open while patches are read.
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
        stride_px: Distance between patches in px of a patch; None means ``patch_px``.
        tissue: Tissue mask of the complete slide, shape (h, w), bool; if None, it is computed.
        min_tissue: Minimum fraction of tissue in a patch, 0..1. With 0 and no ``tissue``, all
            patches are taken. With 0 and ``tissue``, all patches that touch tissue are taken.

    Attributes:
        coords: x, y of the top left corner of each patch in level-0 px, shape (N, 2), int32.
        row_col: Row and column of each patch in the grid, shape (N, 2), int32.
        shape: Number of rows and columns of the complete grid.
        level: Index of the level from which the patches are read.

    Raises:
        SlideError: The slide is too coarse, too small, too large or damaged, or has no tissue.
    """

    def __init__(
        self,
        slide: Slide,
        *,
        patch_px: int,
        mpp: float,
        stride_px: int | None = None,
        tissue: NDArray[np.bool_] | None = None,
        min_tissue: float = MIN_TISSUE,
    ) -> None:
        check_size(slide, patch_px=patch_px, mpp=mpp)
        if slide.mpp > mpp * (1 + _MPP_TOLERANCE):
            scale = f"{slide.mpp:g} um/px is coarser than the model's {mpp:g}"
            logger.warning("%s: %s; the patches are enlarged and blurred", slide.path, scale)
        sides: dict[str, Any] = {"patch_px": patch_px, "stride_px": stride_px or patch_px}
        try:
            grid = make_grid(slide.width, slide.height, slide_mpp=slide.mpp, mpp=mpp, **sides)
        except ValueError as error:
            raise SlideError(
                f"{slide.path}, {slide.width}x{slide.height} px at {slide.mpp:g} um/px: {error}"
            ) from None
        self.row_col = grid.cells()
        if min_tissue > 0 or tissue is not None:
            mask = find_tissue(slide)[1] if tissue is None else tissue
            corners = grid.coords(self.row_col).astype(np.float64)
            boxes = np.hstack([corners, corners + patch_px * mpp / slide.mpp])
            fraction = tissue_fraction(mask, boxes / np.tile([slide.width, slide.height], 2))
            # The tolerance 1e-9 is larger than the rounding errors of the fractions, about 1e-12.
            self.row_col = self.row_col[(fraction >= min_tissue - 1e-9) & (fraction > 1e-9)]
        if len(self.row_col) == 0:
            raise SlideError(
                f"{slide.path}: no tissue found; give a tissue mask, or a smaller --min-tissue"
            )
        self.coords = grid.coords(self.row_col)
        self.shape = (grid.rows, grid.cols)
        self.level = choose_level([level.mpp for level in slide.levels], mpp)
        self._slide = slide
        self._patch_px = patch_px
        level = slide.levels[self.level]
        self._x = grid.edges(self.row_col[:, 1], mpp=level.mpp)
        self._y = grid.edges(self.row_col[:, 0], mpp=level.mpp)

    def __len__(self) -> int:
        return len(self.row_col)

    def select(self, is_kept: NDArray[np.bool_]) -> None:
        """Keep only some of the patches; ``is_kept`` has one value per patch, shape (N,)."""
        for name in ("row_col", "coords", "_x", "_y"):
            setattr(self, name, getattr(self, name)[is_kept])

    def batches(self, batch_size: int) -> Generator[NDArray[np.uint8], None, None]:
        """Read all patches in order; threads read the next batches while the caller uses a batch.

        The memory does not depend on the size of the slide. Close the generator to end the threads.

        Args:
            batch_size: Number of patches in a batch; the last batch may have fewer.

        Yields:
            Pixels of a batch, shape (n, patch_px, patch_px, 3), uint8; px outside the slide are
            white.
        """
        height = int((self._y[:, 1] - self._y[:, 0]).max())
        groups = group_reads(
            self.row_col[:, 0], self._x, max_width=_MAX_READ_PX // height, max_gap=_MAX_GAP_PX
        )
        patches = prefetch(self._read, groups, num=self._slide.num_readers)
        return rebatch(patches, batch_size=batch_size)

    def _read(self, group: slice) -> NDArray[np.uint8]:
        """Read a group of patches in one call.

        Returns:
            Pixels of the patches, shape (n, patch_px, patch_px, 3), uint8.
        """
        xs = self._x[group]
        left, right = int(xs[0, 0]), int(xs[:, 1].max())
        top, bottom = (int(edge) for edge in self._y[group.start])
        strip = self._slide.read(self.level, left, top, width=right - left, height=bottom - top)
        side, edges = self._patch_px, xs - left
        patches = np.empty((len(xs), side, side, 3), np.uint8)
        factor, rest = divmod(bottom - top, side)
        sides = np.diff(edges)
        if factor > 1 and not (rest or (edges % factor).any() or (sides != bottom - top).any()):
            # Each px of a patch is the mean of factor x factor px. Resizing the strip in one call
            # gives the same px and is faster than one call for each patch.
            strip = self._resize(strip, width=strip.shape[1] // factor)
            edges = edges // factor
        for patch, (first, end) in zip(patches, edges, strict=True):
            box = strip[:, first:end]
            patch[:] = box if box.shape == patch.shape else self._resize(box, width=side)
        return patches

    def _resize(self, box: NDArray[np.uint8], *, width: int) -> NDArray:
        """Resize the picture ``box`` to a width of ``width`` px and the height of a patch."""
        side = self._patch_px
        # INTER_AREA averages px to shrink a picture, but only repeats px to enlarge a picture.
        is_enlarged = box.shape[0] < side or box.shape[1] < width
        interpolation = cv2.INTER_LINEAR if is_enlarged else cv2.INTER_AREA
        return cv2.resize(box, (width, side), interpolation=interpolation)


def check_size(slide: Slide, *, patch_px: int, mpp: float) -> None:
    """Raise SlideError if a slide is too coarse for patches, or smaller than a patch.

    Args:
        slide: The slide.
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
    """
    if slide.mpp > mpp * _MAX_UPSAMPLING:
        raise SlideError(
            f"{slide.path}: {slide.mpp:g} um/px ({slide.mpp_source}) is too coarse for a model of "
            f"{mpp:g} um/px; scan the slide at a finer resolution, or give --mpp if this value is "
            "wrong"
        )
    width, height = slide.width * slide.mpp, slide.height * slide.mpp
    if max(width, height) < patch_px * mpp * (1 - _MPP_TOLERANCE):
        raise SlideError(
            f"{slide.path}: {width:.3g} x {height:.3g} um at {slide.mpp:g} um/px "
            f"({slide.mpp_source}) are less than a patch of {patch_px * mpp:g} um; give --mpp if "
            "the um/px are wrong"
        )
