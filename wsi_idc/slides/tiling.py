"""Tile a slide: find the tissue, and place the grid of patches on the tissue."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.masks import read_mask
from wsi_idc.slides.patches import MIN_TISSUE, SlidePatches, check_size
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tissue import MIN_AREA_MM2, TISSUE_THRESHOLD, find_tissue, resize_mask


@dataclass(frozen=True)
class SlideSettings:
    """Settings for cutting patches from slides.

    Attributes:
        mpp: Microns per level-0 px; None means the value that the slide file states.
        mask: Mask file; None means that the tissue is found by segmentation.
        mask_frame: Part of a slide that a mask shows; see ``read_mask``.
        min_tissue: Minimum fraction of tissue in a patch, 0..1. With 0 and no ``mask``, all
            patches are taken. With 0 and ``mask``, all patches that touch tissue are taken.
        tissue_threshold, min_piece_mm2, min_hole_mm2: Arguments of ``tissue_mask``.
        stride_px: Distance between patches in px of a patch; None means the side of a patch.
    """

    mpp: float | None = None
    mask: Path | None = None
    mask_frame: str = "auto"
    min_tissue: float = MIN_TISSUE
    tissue_threshold: float = TISSUE_THRESHOLD
    min_piece_mm2: float = MIN_AREA_MM2
    min_hole_mm2: float = MIN_AREA_MM2
    stride_px: int | None = None

    def for_slide(self, row: ManifestRow) -> "SlideSettings":
        """Return the settings of one slide; a missing ``mpp`` or ``mask`` is taken from ``row``."""
        mpp = row.mpp if self.mpp is None else self.mpp
        return replace(self, mpp=mpp, mask=self.mask or row.mask)


@dataclass(frozen=True)
class TiledSlide:
    """Patches and tissue of a slide.

    Attributes:
        patches: Patches with tissue; the pixels are read on demand.
        thumbnail: Thumbnail of the complete slide, shape (h, w, 3), uint8.
        tissue: Mask of the tissue in the thumbnail, shape (h, w), bool.
    """

    patches: SlidePatches
    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]


def tile_slide(slide: Slide, settings: SlideSettings, *, patch_px: int, mpp: float) -> TiledSlide:
    """Find the tissue of a slide and the positions of its patches, without reading patches.

    Args:
        slide: The slide; it must stay open while patches are read.
        settings: Settings for cutting patches.
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.

    Raises:
        SlideError: The slide or its mask cannot be used, or has no tissue.
    """
    check_size(slide, patch_px=patch_px, mpp=mpp)  # fast, so it is before the thumbnail
    thumbnail, tissue = find_tissue(
        slide,
        threshold=settings.tissue_threshold,
        min_piece_mm2=settings.min_piece_mm2,
        min_hole_mm2=settings.min_hole_mm2,
    )
    mask = tissue
    if settings.mask is not None:
        mask = read_mask(settings.mask, slide=slide, frame=settings.mask_frame)
    takes_all = settings.mask is None and settings.min_tissue == 0
    patches = SlidePatches(
        slide,
        patch_px=patch_px,
        mpp=mpp,
        stride_px=settings.stride_px,
        tissue=None if takes_all else mask,
        min_tissue=settings.min_tissue,
    )
    return TiledSlide(patches, thumbnail, resize_mask(mask, tissue.shape))
