"""A slide file that OpenSlide reads: the only place that knows OpenSlide."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.slides.reader import SlideReader, composite_on_white

if TYPE_CHECKING:
    import openslide

# OpenSlide keeps decoded tiles; a strip of patches comes back to those of the strip above. Room
# for a row of 256 px tiles of a slide of 130,000 px.
_CACHE_BYTES = 128 * 2**20
# A tile is decoded as a whole, and where there is no room for it OpenSlide ends the process.
_MAX_TILE_PX = 2**26


class OpenSlideReader(SlideReader):
    """A slide file that OpenSlide reads.

    Args:
        path: The file, one that ``is_pyramid`` knows.

    Raises:
        SlideError: It is damaged.
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
            self.file_mpp = _stated_mpp(
                handle.properties.get(openslide.PROPERTY_NAME_MPP_X),
                handle.properties.get(openslide.PROPERTY_NAME_MPP_Y),
            )
        except openslide.OpenSlideError as error:
            raise SlideError(f"{path}: damaged or cut short ({first_line(error)})") from None

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Return a region as ``Source.read`` does.

        OpenSlide takes the corner in whole level-0 px. Where that is no whole px of the level,
        since the downsample of real pyramids is 4.0003 or so, it shifts by interpolation, at most
        half a level-0 px.
        """
        scale = self.downsamples[level]
        corner = (round(x * scale), round(y * scale))
        # Held here until the read has ended, whatever becomes of the attribute meanwhile.
        shared = self._handle
        if shared is not None:
            # After one error OpenSlide answers every call with it, also those under way in other
            # threads: whose it was shows with a handle of one's own.
            with contextlib.suppress(self._error):
                return _pixels(shared, corner, level, (width, height))
        if self._is_closed:
            raise ValueError(f"{self._path} is closed")
        try:
            own = self._open()
            pixels = _pixels(own, corner, level, (width, height))
        except self._error as error:
            self._handle = None
            raise SlideError(
                f"{self._path}: cannot be read at x {corner[0]}, y {corner[1]} of level {level}; "
                f"damaged or cut short ({first_line(error)})"
            ) from None
        self._handle = None if self._is_closed else own
        return pixels

    def close(self) -> None:
        """Give the file back; it is closed when the last read that is under way has ended."""
        self._is_closed = True
        self._handle = None

    def _open(self) -> "openslide.OpenSlide":
        import openslide

        handle = openslide.OpenSlide(self._path)
        handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        return handle


def library_version() -> str:
    """Return the version of the OpenSlide library, which its Python package only calls."""
    import openslide

    return str(openslide.__library_version__)


def is_pyramid(path: Path) -> bool:
    """Return whether OpenSlide knows the format of a file."""
    import openslide

    try:
        return openslide.OpenSlide.detect_format(path) is not None
    except openslide.OpenSlideError:
        return False


def _check_tiles(path: Path, properties: Mapping[str, str]) -> None:
    """Raise SlideError where a level's tiles are larger than anyone would write."""
    for level in range(int(properties.get("openslide.level-count", 0))):
        sides = (
            int(properties.get(f"openslide.level[{level}].tile-{side}", 0))
            for side in ("width", "height")
        )
        if math.prod(sides) > _MAX_TILE_PX:
            raise SlideError(f"{path}: damaged or cut short (its tiles are too large)")


def _pixels(
    handle: "openslide.OpenSlide", corner: tuple[int, int], level: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    return composite_on_white(np.asarray(handle.read_region(corner, level, size)))


def _stated_mpp(x: str | None, y: str | None) -> tuple[float, float] | None:
    if x is None or y is None:
        return None
    with contextlib.suppress(ValueError):
        return float(x), float(y)
    return None
