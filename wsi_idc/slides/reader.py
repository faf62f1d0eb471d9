"""Interface of slide readers, and a reader of plain images: PNG, JPEG, or TIFF without tiles."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from wsi_idc.core.errors import DAMAGED_IMAGE, SlideError, first_line
from wsi_idc.geometry.bounds import Bounds

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_FORMATS = ("TIFF", "PNG", "JPEG")
_OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_ALPHA_MODES = ("LA", "PA", "RGBA")
# Maximum size of an image. Pillow needs 4 bytes of memory per px and treats larger images as
# attacks (decompression bombs).
MAX_PX = 89_478_485
# Maximum size of a tile: OpenSlide aborts the process if a tile does not fit into memory.
_MAX_TILE_PX = 2**26
# Size of a cache of decoded tiles: neighboring rows of patches need the same tiles. The cache has
# room for one row of 256 px tiles of a slide that is 130,000 px wide.
CACHE_BYTES = 128 * 2**20
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296  # TIFF 6.0, section 8
UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimeter
_WHITE = 255


class SlideReader(ABC):
    """Interface of the readers that read pixels from the levels of a slide.

    Attributes:
        sizes: Width and height of each level in px of the level, level 0 first.
        downsamples: Width of a px of each level, in level-0 px.
        file_mpp: Microns per level-0 px along x and y, not checked; None if the file does not
            state them.
        bounds: Scanned area; None if it is the complete slide.
        properties: Metadata of the file with OpenSlide's names, not checked.
    """

    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    file_mpp: tuple[float, float] | None
    bounds: Bounds | None = None
    properties: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region of a level; px outside the slide are white.

        The position and the size are in px of the level. Several threads may call this method
        concurrently.

        Returns:
            RGB pixels, shape (height, width, 3), uint8.

        Raises:
            SlideError: The region cannot be read; other regions may be readable.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the slide file; reads in progress are not interrupted."""


def composite_on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend pixels with a white background.

    Args:
        rgba: Pixels, shape (h, w, 4); the colors are not premultiplied by alpha.

    Returns:
        RGB pixels, shape (h, w, 3).
    """
    alpha = rgba[..., 3:]
    if alpha.min(initial=_WHITE) == _WHITE:
        # All px are opaque: cvtColor is several times faster than copying the color channels.
        return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
    weight = alpha.astype(np.uint16)
    mixed = rgba[..., :3] * weight + _WHITE * (_WHITE - weight)
    # Round to the nearest integer; the largest sum, 255 * 255 + 127, fits into 16 bits.
    return ((mixed + _WHITE // 2) // _WHITE).astype(np.uint8)


def has_alpha(image: Image.Image) -> bool:
    """Return whether an image may have transparent pixels."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


class ImageReader(SlideReader):
    """Reader of a plain image; Pillow decodes the complete image into memory.

    Args:
        path: Image file.
    """

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # readable files may have unusual tags
            image = _load(path)
        self.sizes = (image.size,)
        self.downsamples = (1.0,)
        self.file_mpp = _tiff_mpp(image)
        self._image = image
        self._has_alpha = has_alpha(image)

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see ``SlideReader.read``."""
        region = np.full((height, width, 3), _WHITE, np.uint8)
        left, right = max(0, x), min(x + width, self._image.width)
        top, bottom = max(0, y), min(y + height, self._image.height)
        if left < right and top < bottom:
            crop = self._image.crop((left, top, right, bottom))
            if self._has_alpha:
                pixels = composite_on_white(np.asarray(crop.convert("RGBA")))
            else:
                pixels = np.asarray(crop.convert("RGB"))
            region[top - y : bottom - y, left - x : right - x] = pixels
        return region

    def close(self) -> None:
        """Free the memory of the decoded image."""
        self._image = Image.new("RGB", (0, 0))


def _load(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            check_num_px(path, *image.size, is_tile=False)
            if image.mode not in (*_OPAQUE_MODES, *_ALPHA_MODES):
                raise SlideError(
                    f"{path}: the pixels have mode {image.mode}; save 8 bits per channel"
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # image viewers turn the picture too
            return image
    except Image.DecompressionBombError:
        raise SlideError(_too_large(path, f"more than {2 * MAX_PX}")) from None
    except UnidentifiedImageError:
        raise SlideError(
            f"{path}: OpenSlide does not support this file, and it is not a TIFF, PNG or JPEG; "
            "it may be damaged"
        ) from None
    except DAMAGED_IMAGE as error:
        raise SlideError(f"{path}: damaged or cut short ({first_line(error)})") from None


def check_num_px(path: Path, width: int, height: int, *, is_tile: bool) -> None:
    """Raise SlideError if a tile, or an image without tiles, has too many px."""
    if is_tile and width * height > _MAX_TILE_PX:
        raise SlideError(f"{path}: damaged or cut short (its tiles are too large)")
    if not is_tile and width * height > MAX_PX:
        raise SlideError(_too_large(path, f"{width}x{height}"))


def _too_large(path: Path, size: str) -> str:
    return (
        f"{path}: {size} px are too many for a picture without tiles (at most {MAX_PX}); "
        "save it as a tiled TIFF with levels"
    )


def _tiff_mpp(image: Image.Image) -> tuple[float, float] | None:
    """Return the microns per px along x and y; None if the image is not a TIFF or has no mpp.

    PNG and JPEG files state only a resolution for printing.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    um = UM_PER_UNIT.get(tags.get(_RESOLUTION_UNIT, 2))
    try:
        per_unit = [float(tags[tag]) for tag in (_X_RESOLUTION, _Y_RESOLUTION)]
        return None if um is None else (um / per_unit[0], um / per_unit[1])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
