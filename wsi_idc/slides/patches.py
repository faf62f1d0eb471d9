"""Patches of a slide at the size and resolution of a model."""

import logging
from collections.abc import Generator

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError
from wsi_idc.runtime.prefetch import prefetch, rebatch
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tiling import (
    MPP_TOLERANCE,
    Grid,
    choose_level,
    group_reads,
    is_native,
    make_grid,
    tissue_fraction,
)
from wsi_idc.slides.tissue import find_tissue

logger = logging.getLogger(__name__)

MIN_TISSUE = 0.1
# A coarser slide lacks the structures that the model needs.
_MAX_UPSAMPLING = 1.5
_MAX_READ_PX = 2**21  # per read; takes up to 8 bytes per px
# A gap of two storage tiles makes a second read worthwhile.
_MAX_GAP_PX = 512


class SlidePatches:
    """Patches of a slide that contain tissue, by row, then by column of the grid.

    Args:
        slide: The slide, open while patches are read.
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
        stride_px: Distance between neighboring patches in px of a patch; None means ``patch_px``,
            less makes patches overlap.
        tissue: Tissue mask of the complete slide, shape (h, w), bool; None segments the slide.
        min_tissue: Minimum fraction of tissue in a patch, 0..1; 0 takes every patch, or with
            ``tissue`` every patch that touches tissue.

    Attributes:
        coords: Level-0 x, y of the top left corners, shape (N, 2), int32.
        row_col: Grid cells, shape (N, 2), int32.
        shape: Rows and cols of the complete grid.
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
        try:
            grid = make_grid(
                slide.width,
                slide.height,
                slide_mpp=slide.mpp,
                patch_px=patch_px,
                mpp=mpp,
                stride_px=stride_px or patch_px,
            )
        except ValueError as error:
            raise SlideError(
                f"{slide.path}, {slide.width}x{slide.height} px at {slide.mpp:g} um/px: {error}"
            ) from None
        self.row_col = grid.cells()
        if min_tissue > 0 or tissue is not None:
            mask = find_tissue(slide)[1] if tissue is None else tissue
            fraction = tissue_fraction(mask, _boxes(grid, self.row_col, slide))
            # Rounding errors of the fractions are about 1e-12.
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
        self._is_native = is_native(level.mpp, mpp)
        self._x = grid.edges(self.row_col[:, 1], mpp=level.mpp)
        self._y = grid.edges(self.row_col[:, 0], mpp=level.mpp)

    def __len__(self) -> int:
        return len(self.row_col)

    def batches(self, batch_size: int) -> Generator[NDArray[np.uint8], None, None]:
        """Read all patches in order; threads read the next ones while a batch is used.

        Memory is bounded for a slide of any size. Closing the generator ends the threads.

        Args:
            batch_size: Patches in each batch except the last one.

        Yields:
            Shape (n, patch_px, patch_px, 3), uint8; white beyond the edge of the slide.

        Raises:
            SlideError: The file is damaged.
        """
        height = int((self._y[:, 1] - self._y[:, 0]).max())
        groups = group_reads(
            self.row_col[:, 0], self._x, max_width=_MAX_READ_PX // height, max_gap=_MAX_GAP_PX
        )
        patches = prefetch(self._read, groups, num=self._slide.num_readers)
        return rebatch(patches, batch_size=batch_size)

    def _read(self, group: slice) -> NDArray[np.uint8]:
        """Read neighboring patches of a grid row together: shape (n, patch_px, patch_px, 3)."""
        xs = self._x[group]
        left, right = int(xs[0, 0]), int(xs[:, 1].max())
        top, bottom = (int(edge) for edge in self._y[group.start])
        strip = self._slide.read(self.level, left, top, width=right - left, height=bottom - top)
        side = self._patch_px
        patches = np.empty((len(xs), side, side, 3), np.uint8)
        for patch, (first, end) in zip(patches, xs - left, strict=True):
            patch[:] = self._resize(strip[:, first:end])
        return patches

    def _resize(self, box: NDArray[np.uint8]) -> NDArray:
        if self._is_native:
            return box
        side = self._patch_px
        # INTER_AREA averages when it shrinks, but repeats pixels when it enlarges.
        is_enlarged = min(box.shape[:2]) < side
        interpolation = cv2.INTER_LINEAR if is_enlarged else cv2.INTER_AREA
        return cv2.resize(box, (side, side), interpolation=interpolation)


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
    """Return left, top, right, bottom of cells as fractions of the slide, shape (N, 4)."""
    x, y = grid.coords(row_col).T.astype(np.float64)
    side = grid.patch_px * grid.mpp / grid.slide_mpp
    edges = [x / slide.width, y / slide.height]
    edges += [(x + side) / slide.width, (y + side) / slide.height]
    return np.stack(edges, axis=1)
