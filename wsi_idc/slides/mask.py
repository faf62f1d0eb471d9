"""The tissue of a slide: found in its thumbnail, or read from a file."""

import math
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.slides.image_reader import DAMAGED, MAX_PX
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tissue import MASK_MPP, tissue_mask

# Sides of the thumbnail: few slides are longer than 4096 px of 32 um, 131 mm, and those are seen
# coarser; one of few px is seen finer.
_MAX_SIDE_PX = 4096
_MIN_SIDE_PX = 64
_MAX_SIDE_UM = 400_000
_MAX_STRETCH = 0.01
_DAMAGED = (*DAMAGED, Image.DecompressionBombError)


def find_tissue(slide: Slide) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a thumbnail of a slide at about 32 um/px and where there is tissue in it.

    Returns:
        Shapes (h, w, 3), uint8, and (h, w), bool.

    Raises:
        SlideError: The file is damaged.
    """
    longest = max(slide.width, slide.height)
    if longest * slide.mpp > _MAX_SIDE_UM:
        raise SlideError(
            f"{slide.path}: {longest} px of {slide.mpp:g} um are "
            f"{longest * slide.mpp / 1e6:.1f} m, which no slide is; give --mpp if that is wrong, "
            "else copy the slide again"
        )
    side = math.ceil(longest * slide.mpp / MASK_MPP)
    thumbnail = slide.thumbnail(min(max(side, _MIN_SIDE_PX), _MAX_SIDE_PX))
    mpp = longest * slide.mpp / max(thumbnail.shape)
    return thumbnail, tissue_mask(thumbnail, mpp=mpp)


def read_mask(path: Path, *, slide: Slide) -> NDArray[np.bool_]:
    """Read a tissue mask: a picture of the whole slide in any size, tissue where it is not black.

    Returns:
        Shape (h, w) as in the file, bool.

    Raises:
        SlideError: It is no picture, has another shape than the slide, or no tissue.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                if image.width * image.height > MAX_PX:
                    raise SlideError(
                        f"{path}: {image.width}x{image.height} px are too many for a mask; "
                        "make it smaller"
                    )
                _check_shape(path, image.size, slide)
                mask = _is_set(image)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; give a mask as PNG") from None
    except _DAMAGED as error:
        reason = first_line(error)
        raise SlideError(f"{path}: not a readable mask ({reason}); give a PNG") from None
    if not mask.any():
        raise SlideError(f"{path}: the mask is empty; tissue is what is not 0")
    return mask


def resize_mask(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask at another size, such as a thumbnail's: shape (h, w), bool."""
    size = (shape[1], shape[0])
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _check_shape(path: Path, size: tuple[int, int], slide: Slide) -> None:
    """Raise where a mask is not that of the slide but for a px of rounding."""
    width, height = size
    off = abs(width * slide.height / slide.width - height)
    if off > max(1.0, _MAX_STRETCH * height):
        raise SlideError(
            f"{path}: a mask of {width}x{height} px is not that of a slide of "
            f"{slide.width}x{slide.height} px; give one of the whole slide"
        )


def _is_set(image: Image.Image) -> NDArray[np.bool_]:
    """Return where a picture is neither black nor transparent."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[..., :3].any(axis=2) & (rgba[..., 3] > 0)
    if image.mode in ("P", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    values = np.asarray(image)
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))
