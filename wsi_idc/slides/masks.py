"""Read mask files: pictures in which everything but tissue is black, or outlines of tissue."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wsi_idc.core.errors import DAMAGED_IMAGE, SlideError, first_line
from wsi_idc.core.files import regular_file, sha256
from wsi_idc.slides.annotations import read_annotations
from wsi_idc.slides.labels import annotation_mask
from wsi_idc.slides.reader import MAX_PX, has_alpha
from wsi_idc.slides.slide import Slide
from wsi_idc.slides.tissue import resize_mask

_OUTLINES = (".geojson", ".json", ".gz", ".xml", ".annotations", ".ndpa")  # suffixes
_MAX_STRETCH = 0.01
_MIN_PLACED_PX = 4096


def read_mask(path: Path, *, slide: Slide, frame: str = "auto") -> NDArray[np.bool_]:
    """Read a mask file: a picture of any size whose background is black, or outlines of tissue.

    Args:
        path: PNG picture, TIFF picture, or annotation file. All outlines of an annotation file are
            outlines of tissue.
        slide: Slide that the mask belongs to.
        frame: Part of the slide that a picture shows: "level0" for the complete slide, "qupath"
            for the scanned area. With "auto", the aspect ratio of the picture decides. For an
            annotation file, ``read_annotations`` describes ``frame``.

    Returns:
        Tissue mask of the complete slide, shape (h, w), bool, in any resolution.

    Raises:
        SlideError: The file is not a mask, has no tissue, or does not fit the slide.
    """
    if path.suffix.lower() in _OUTLINES:
        return _draw_outlines(path, slide, frame)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(regular_file(path), formats=("PNG", "TIFF")) as image:
                if image.width * image.height > MAX_PX:
                    raise SlideError(
                        f"{path}: {image.width}x{image.height} px are too many for a mask; "
                        "make the mask smaller"
                    )
                ImageOps.exif_transpose(image, in_place=True)
                frame = _choose_frame(path, image.size, slide, frame)
                mask = _is_foreground(image)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; give a mask as PNG") from None
    except (*DAMAGED_IMAGE, Image.DecompressionBombError) as error:
        reason = first_line(error)
        raise SlideError(f"{path}: not a readable mask ({reason}); give a PNG") from None
    if not mask.any():
        raise SlideError(f"{path}: the mask is empty; give a mask in which tissue is not black")
    return _place_on_slide(mask, slide) if frame == "qupath" else mask


def _choose_frame(path: Path, size: tuple[int, int], slide: Slide, frame: str) -> str:
    """Return the part of the slide that has the aspect ratio of a mask: "level0" or "qupath".

    Raises:
        SlideError: Both parts have this aspect ratio, or neither has.
    """
    sides = {"level0": (slide.width, slide.height)}
    shown = f"a slide of {slide.width}x{slide.height} px"
    if slide.bounds is None:
        frame = "auto"  # both frames are the complete slide
    else:
        sides["qupath"] = (slide.bounds.width, slide.bounds.height)
        shown += f" or its scanned area of {slide.bounds.width}x{slide.bounds.height} px"
    fits = [name for name in sides if frame in ("auto", name) and _fits(size, sides[name])]
    if not fits:
        raise SlideError(
            f"{path}: a mask of {size[0]}x{size[1]} px does not fit {shown}; give a mask of the "
            "complete slide" + ("" if frame == "auto" else ", or another --mask-frame")
        )
    if len(fits) > 1:
        raise SlideError(
            f"{path}: a mask of {size[0]}x{size[1]} px can show {shown}; give --mask-frame level0 "
            "if it shows the complete slide, or --mask-frame qupath if it was drawn in QuPath"
        )
    return fits[0]


def _fits(mask: tuple[int, int], part: tuple[int, int]) -> bool:
    """Return whether a mask and a part of a slide have the same ratio of width to height."""
    difference_px = abs(mask[0] * part[1] / part[0] - mask[1])
    return difference_px <= max(1.0, _MAX_STRETCH * mask[1])


def _draw_outlines(path: Path, slide: Slide, frame: str) -> NDArray[np.bool_]:
    """Draw the outlines of an annotation file as a mask of the complete slide."""
    size = (slide.width, slide.height)
    options: dict[str, Any] = {"bounds": slide.bounds, "mpp": slide.mpp, "frame": frame}
    try:
        outlines = read_annotations(path, size=size, properties=slide.properties, **options)
    except SlideError as error:
        text = str(error).replace("--annotation-frame", "--mask-frame")
        raise SlideError(text) from None
    scale = min(1.0, _MIN_PLACED_PX / max(size))
    width, height = (math.ceil(side * scale) for side in size)
    mask = annotation_mask(outlines, (height, width), (width / size[0], height / size[1]))
    if not mask.any():
        raise SlideError(f"{path}: the mask is empty; give outlines of tissue")
    return mask


def _place_on_slide(mask: NDArray[np.bool_], slide: Slide) -> NDArray[np.bool_]:
    """Place a mask of the scanned area in a mask of the complete slide."""
    bounds = slide.bounds
    assert bounds is not None
    # The bounds are rounded to px of the result; small px keep the rounding errors small.
    scale = max(mask.shape[1] / bounds.width, _MIN_PLACED_PX / max(slide.width, slide.height))
    scale = min(1.0, scale, math.sqrt(MAX_PX / (slide.width * slide.height)))
    width, height = (math.ceil(side * scale) for side in (slide.width, slide.height))
    x, y = width / slide.width, height / slide.height  # px of the result per level-0 px
    left, right = round(bounds.x * x), round((bounds.x + bounds.width) * x)
    top, bottom = round(bounds.y * y), round((bounds.y + bounds.height) * y)
    placed = np.zeros((height, width), bool)
    part = placed[top:bottom, left:right]  # bounds may extend beyond the slide
    shape = (max(1, bottom - top), max(1, right - left))
    part[:] = resize_mask(mask, shape)[: part.shape[0], : part.shape[1]]
    return placed


def _is_foreground(image: Image.Image) -> NDArray[np.bool_]:
    """Return whether each px is neither black nor transparent, shape (h, w)."""
    if has_alpha(image):
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[..., :3].any(axis=2) & (rgba[..., 3] > 0)
    if image.mode in ("P", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    values = np.asarray(image)
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))


def mask_fingerprint(mask: Path | None) -> str | None:
    """Return the SHA-256 of a mask file; None without a mask. A missing file raises SlideError."""
    if mask is None:
        return None
    if not mask.is_file():  # opening a pipe would block
        problem = "not a regular file" if mask.exists() else "no such file"
        raise SlideError(f"{mask}: {problem}; give a mask as PNG")
    return sha256(mask)
