"""Tile a slide: find the tissue, and place the grid of patches on the tissue."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError
from wsi_idc.core.files import sha256
from wsi_idc.slides.patches import MIN_TISSUE, SlidePatches, check_size
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tissue import find_tissue, read_mask, resize_mask


@dataclass(frozen=True)
class SlideSettings:
    """Settings for cutting patches from slides.

    Attributes:
        mpp: Microns per level-0 px. If None, the manifest or else the slide file states the value.
        mask: Mask file for the only slide; None means that slides are segmented.
        min_tissue: Minimum fraction of tissue in a patch, 0..1. With 0, all patches are taken; if
            ``mask`` is given too, only patches that touch tissue are taken.
        stride_px: Distance between patches in px of a patch; None means the side of a patch.
    """

    mpp: float | None = None
    mask: Path | None = None
    min_tissue: float = MIN_TISSUE
    stride_px: int | None = None


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
    check_size(slide, patch_px=patch_px, mpp=mpp)  # before the thumbnail is read
    thumbnail, tissue = find_tissue(slide)
    mask = tissue if settings.mask is None else read_mask(settings.mask, slide=slide)
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


def mask_fingerprint(mask: Path | None) -> str | None:
    """Return the SHA-256 of a mask file; None without a mask. Raise SlideError without a file."""
    if mask is None:
        return None
    if not mask.is_file():  # not a pipe, which would block open()
        problem = "not a regular file" if mask.exists() else "no such file"
        raise SlideError(f"{mask}: {problem}; give a mask as PNG")
    return sha256(mask)
