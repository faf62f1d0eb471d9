"""The patches of a slide, at the size and resolution of a model."""

import logging
from collections.abc import Generator, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tiling import (
    MPP_TOLERANCE,
    Grid,
    choose_level,
    group_reads,
    has_pixels_of,
    make_grid,
    tissue_fraction,
)
from wsi_idc.slides.tissue import find_tissue

logger = logging.getLogger(__name__)

# Least share of tissue in a patch that is worth a look.
MIN_TISSUE = 0.1
# A slide this much coarser than the model wants lacks what the model looks at.
_MAX_UPSAMPLING = 1.5
# What one thread reads at one go: 4 bytes a px, some of it twice.
_MAX_READ_PX = 2**21
# Two storage tiles: what a gap has to be for another read to pay.
_MAX_GAP_PX = 512


class SlidePatches:
    """The patches of a slide that hold tissue, in grid order: by row, then by column.

    Args:
        slide: Stays open as long as patches are read.
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
        stride_px: From one patch to the next, in the same px; as large as a patch if not given,
            smaller for patches that overlap.
        tissue: Where there is tissue, shape (h, w), bool, over the whole slide; found if not
            given.
        min_tissue: Least share of tissue in a patch, 0..1; 0 takes every patch, or with
            ``tissue`` each that has any of it.

    Attributes:
        coords: Level-0 x, y of the top left corners, shape (N, 2), int32.
        row_col: Grid cells, shape (N, 2), int32.
        shape: Rows and cols of the whole grid.
        level: Index of the level that is read.

    Raises:
        SlideError: The slide is too coarse or too large, has no tissue, or is damaged.
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
        _check_resolution(slide, mpp)
        grid = _grid_of(slide, patch_px=patch_px, mpp=mpp, stride_px=stride_px or patch_px)
        self.row_col = grid.cells()
        if min_tissue > 0 or tissue is not None:
            mask = find_tissue(slide)[1] if tissue is None else tissue
            share = tissue_fraction(mask, _boxes(grid, self.row_col, slide))
            # Sums of shares are off by some 1e-12.
            self.row_col = self.row_col[(share >= min_tissue - 1e-9) & (share > 1e-9)]
        if len(self.row_col) == 0:
            raise SlideError(
                f"{slide.path}: no tissue found; give a mask of it, or a smaller --min-tissue"
            )
        self.coords = grid.coords(self.row_col)
        self.shape = (grid.rows, grid.cols)
        self.level = choose_level([level.mpp for level in slide.levels], mpp)
        self._slide = slide
        self._patch_px = patch_px
        level = slide.levels[self.level]
        self._as_it_is = has_pixels_of(level.mpp, mpp)
        self._x = grid.edges(self.row_col[:, 1], mpp=level.mpp)
        self._y = grid.edges(self.row_col[:, 0], mpp=level.mpp)

    def __len__(self) -> int:
        return len(self.row_col)

    def batches(self, batch_size: int) -> Generator[NDArray[np.uint8], None, None]:
        """Yield all patches in order, read by threads while the last ones are being used.

        Memory is bounded whatever the size of the slide. Close the iterator, or let go of it, to
        stop before its end; the threads end then.

        Args:
            batch_size: Patches in each but the last.

        Yields:
            Shape (n, patch_px, patch_px, 3), uint8; white beyond the slide's edge.

        Raises:
            SlideError: The file is damaged.
        """
        height = int((self._y[:, 1] - self._y[:, 0]).max())
        parts = group_reads(
            self.row_col[:, 0],
            self._x,
            max_width=_MAX_READ_PX // height,
            max_gap=_MAX_GAP_PX,
        )
        return rebatch(
            prefetch(self._read, parts, num=self._slide.num_readers), batch_size=batch_size
        )

    def _read(self, run: slice) -> NDArray[np.uint8]:
        """Read neighbours in a grid row at one go: shape (n, patch_px, patch_px, 3)."""
        xs = self._x[run]
        left, right = int(xs[0, 0]), int(xs[:, 1].max())
        top, bottom = (int(edge) for edge in self._y[run.start])
        strip = self._slide.read(self.level, left, top, width=right - left, height=bottom - top)
        side = self._patch_px
        patches = np.empty((len(xs), side, side, 3), np.uint8)
        for patch, (first, end) in zip(patches, xs - left, strict=True):
            patch[:] = self._resize(strip[:, first:end])
        return patches

    def _resize(self, box: NDArray[np.uint8]) -> NDArray:
        if self._as_it_is:
            return box
        side = self._patch_px
        # Averaging is for making smaller; it would repeat pixels in making larger.
        is_smaller = min(box.shape[:2]) < side
        how = cv2.INTER_LINEAR if is_smaller else cv2.INTER_AREA
        return cv2.resize(box, (side, side), interpolation=how)


def rebatch(
    parts: Iterable[NDArray[np.uint8]], *, batch_size: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield what the parts hold, in order, in pieces of ``batch_size``, but for the last."""
    held: list[NDArray[np.uint8]] = []
    have = 0
    for part in parts:
        start = 0
        while have + len(part) - start >= batch_size:
            end = start + batch_size - have
            yield np.concatenate([*held, part[start:end]])
            held, have, start = [], 0, end
        held.append(part[start:])
        have += len(part) - start
    if have:
        yield np.concatenate(held)


def _grid_of(slide: Slide, *, patch_px: int, mpp: float, stride_px: int) -> Grid:
    try:
        return make_grid(
            slide.width,
            slide.height,
            slide_mpp=slide.mpp,
            patch_px=patch_px,
            mpp=mpp,
            stride_px=stride_px,
        )
    except ValueError as error:
        raise SlideError(
            f"{slide.path}, {slide.width}x{slide.height} px at {slide.mpp:g} um/px: {error}"
        ) from None


def _check_resolution(slide: Slide, mpp: float) -> None:
    if slide.mpp > mpp * _MAX_UPSAMPLING:
        raise SlideError(
            f"{slide.path}: {slide.mpp:g} um/px ({slide.mpp_source}) is too coarse for a model of "
            f"{mpp:g} um/px; scan it finer, or give --mpp if that is not its resolution"
        )
    if slide.mpp > mpp * (1 + MPP_TOLERANCE):
        logger.warning(
            "%s: %g um/px is coarser than the model's %g; its patches are enlarged and blurred",
            slide.path,
            slide.mpp,
            mpp,
        )


def _boxes(grid: Grid, row_col: NDArray[np.int32], slide: Slide) -> NDArray[np.float64]:
    """Return left, top, right, bottom of cells as shares of the slide, shape (N, 4)."""
    x, y = grid.coords(row_col).T.astype(np.float64)
    side = grid.patch_px * grid.mpp / grid.slide_mpp
    edges = [x / slide.width, y / slide.height]
    edges += [(x + side) / slide.width, (y + side) / slide.height]
    return np.stack(edges, axis=1)
