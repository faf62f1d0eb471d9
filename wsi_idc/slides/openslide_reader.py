"""Read slide files with OpenSlide; no other module imports OpenSlide."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.slides.reader import CACHE_BYTES, SlideReader, check_num_px, composite_on_white

if TYPE_CHECKING:
    import openslide

GENERIC_TIFF = "generic-tiff"  # OpenSlide's name for a tiled TIFF without a vendor format


class OpenSlideReader(SlideReader):
    """Reader of a slide file that OpenSlide supports.

    Args:
        path: Slide file for which ``detect_format`` returns a name.
    """

    def __init__(self, path: Path) -> None:
        import openslide

        self._path = path
        self._is_closed = False
        self._error = openslide.OpenSlideError
        self._handle: openslide.OpenSlide | None = None
        try:
            handle = self._handle = self._open()
            _check_tiles(path, handle.properties)
            self.sizes = handle.level_dimensions
            self.downsamples = handle.level_downsamples
            self.properties = dict(handle.properties)
            self.file_mpp = _read_mpp(self.properties)
            self.bounds = _read_bounds(self.properties, *self.sizes[0])
        except openslide.OpenSlideError as error:
            raise SlideError(f"{path}: damaged or cut short ({first_line(error)})") from None

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see ``SlideReader.read``.

        OpenSlide needs the top left corner of the region in integer level-0 px. Real slides have
        downsamples such as 4.0003. Therefore the corner is rounded, by at most half a level-0 px.
        """
        scale = self.downsamples[level]
        corner = (round(x * scale), round(y * scale))
        # This local reference keeps the handle open until the read is finished.
        shared = self._handle
        if shared is not None:
            # After one error, every further call of the same handle fails, in all threads. A failed
            # read is therefore repeated below with a new handle.
            with contextlib.suppress(self._error):
                return _read_pixels(shared, corner, level, (width, height))
        if self._is_closed:
            raise ValueError(f"{self._path} is closed")
        try:
            own = self._open()
            pixels = _read_pixels(own, corner, level, (width, height))
        except self._error as error:
            self._handle = None
            raise SlideError(
                f"{self._path}: cannot be read at x {corner[0]}, y {corner[1]} of level {level}; "
                f"damaged or cut short ({first_line(error)})"
            ) from None
        self._handle = None if self._is_closed else own
        return pixels

    def close(self) -> None:
        """Close the slide file as soon as all reads in progress are finished."""
        self._is_closed = True
        self._handle = None

    def _open(self) -> "openslide.OpenSlide":
        import openslide

        handle = openslide.OpenSlide(self._path)
        handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        return handle


def library_version() -> str:
    """Return the version of the OpenSlide C library, not of the Python package."""
    import openslide

    return str(openslide.__library_version__)


def detect_format(path: Path) -> str | None:
    """Return OpenSlide's name for the format of a file; None if OpenSlide cannot read the file."""
    import openslide

    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


def _check_tiles(path: Path, properties: Mapping[str, str]) -> None:
    for level in range(int(properties.get("openslide.level-count", 0))):
        width, height = (
            int(properties.get(f"openslide.level[{level}].tile-{side}", 0))
            for side in ("width", "height")
        )
        check_num_px(path, width, height, is_tile=True)


def _read_pixels(
    handle: "openslide.OpenSlide", corner: tuple[int, int], level: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    return composite_on_white(np.asarray(handle.read_region(corner, level, size)))


def _read_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    with contextlib.suppress(KeyError, ValueError):
        return float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
    return None


def _read_bounds(properties: Mapping[str, str], width: int, height: int) -> Bounds | None:
    """Return the scanned area that the file states.

    Return None if the file states no valid area, or if the scanned area is the complete slide.
    """
    try:
        sides = (properties[f"openslide.bounds-{side}"] for side in ("x", "y", "width", "height"))
        bounds = Bounds(*map(int, sides))
    except (KeyError, ValueError):
        return None
    is_possible = 0 <= bounds.x < width and 0 <= bounds.y < height
    is_possible &= bounds.width > 0 and bounds.height > 0
    return bounds if is_possible and bounds != Bounds(0, 0, width, height) else None
