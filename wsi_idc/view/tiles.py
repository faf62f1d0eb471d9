"""Tiles of a slide in the layout of Deep Zoom, and a cache of bounded size.

Levels of tiles are numbered from the smallest: level 0 has one px. Each next level has about twice
the width and height. The last level, ``max_level``, has the size of the slide in full resolution.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.slides.reader import SlideReader
from wsi_idc.slides.slide import Slide

# Each tile has one more px at each inner edge. Without this overlap, OpenSeadragon would enlarge
# each tile by one px to hide the seams between tiles, and the px of the tile would be shifted.
TILE_PX, OVERLAP_PX = 254, 1
_JPEG_QUALITY = 85
# A tile is made from at most 16 x 16 times as many px of the slide (50 MB). A tile that would need
# more px, because the slide has no coarse level, is made from a thumbnail.
_MAX_SHRINK = 16
# A level is used without resizing if its resolution differs by less than this fraction: real slides
# have downsamples such as 4.0003.
_TOLERANCE = 0.01


class PictureReader(SlideReader):
    """Reader of a picture in memory.

    Args:
        picture: The picture, shape (h, w, 3), uint8.
    """

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        height, width = picture.shape[:2]
        self.sizes, self.downsamples, self.file_mpp = ((width, height),), (1.0,), None
        self._picture = picture

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see ``SlideReader.read``."""
        region = np.full((height, width, 3), 255, np.uint8)
        left, top = max(0, x), max(0, y)
        part = self._picture[top : max(0, y + height), left : max(0, x + width)]
        rows, cols = part.shape[:2]
        region[top - y : top - y + rows, left - x : left - x + cols] = part
        return region

    def close(self) -> None:
        """Do nothing, because a picture in memory has no file."""


class TiledSlide:
    """An open slide that is read as tiles; several threads may read at the same time.

    Args:
        slide: The slide.

    Attributes:
        slide: The slide.
        max_level: Number of the largest level of tiles. This level has the size of the slide.
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.max_level = (max(slide.width, slide.height) - 1).bit_length()
        self._thumbnail: PictureReader | None = None
        self._lock = Lock()

    def jpeg(self, level: int, col: int, row: int) -> bytes:
        """Return a tile as JPEG; tiles at the edges are smaller.

        Raises:
            LookupError: There is no such tile.
            SlideError: The region of the tile cannot be read.
        """
        if not 0 <= level <= self.max_level:
            raise LookupError(f"level {level}")
        shrink = 2 ** (self.max_level - level)
        left, right = _span(col, math.ceil(self.slide.width / shrink))
        top, bottom = _span(row, math.ceil(self.slide.height / shrink))
        pixels = self._read(shrink, left, top, right - left, bottom - top)
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
        return data.tobytes()

    def _read(self, shrink: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region of a level of tiles, shape (height, width, 3).

        Each px of this level is as wide as ``shrink`` level-0 px of the slide.
        """
        levels = self.slide.levels
        downsamples = [level.mpp / levels[0].mpp for level in levels]
        fits = [i for i, d in enumerate(downsamples) if d <= shrink * (1 + _TOLERANCE)]
        index = max(fits, key=lambda i: downsamples[i])
        read: Callable[..., NDArray[np.uint8]] = partial(self.slide.read, index)
        scale = shrink / downsamples[index]
        if scale > _MAX_SHRINK:
            picture = self._read_thumbnail(downsamples[index])
            read, scale = partial(picture.read, 0), shrink * picture.sizes[0][0] / levels[0].width
        if abs(scale - 1) < _TOLERANCE:
            return read(round(left * scale), round(top * scale), width=width, height=height)
        x, y = math.floor(left * scale), math.floor(top * scale)
        end_x, end_y = math.ceil((left + width) * scale), math.ceil((top + height) * scale)
        region = read(x, y, width=end_x - x, height=end_y - y)
        return np.asarray(cv2.resize(region, (width, height), interpolation=cv2.INTER_AREA))

    def _read_thumbnail(self, downsample: float) -> PictureReader:
        with self._lock:  # the first thread reads the slide, the others wait
            if self._thumbnail is None:
                longest = max(self.slide.width, self.slide.height)
                side = math.ceil(longest / (downsample * _MAX_SHRINK))
                self._thumbnail = PictureReader(self.slide.thumbnail(side))
            return self._thumbnail


def _span(number: int, length: int) -> tuple[int, int]:
    """Return the start and end of tile ``number`` along one axis of a level.

    The level has ``length`` px along this axis.
    """
    if not 0 <= number * TILE_PX < length:
        raise LookupError(f"tile {number}")
    start, end = number * TILE_PX - OVERLAP_PX, (number + 1) * TILE_PX + OVERLAP_PX
    return max(0, start), min(length, end)


class ByteCache:
    """Cache of bytes; if the cache is full, the least recently used items are removed.

    Args:
        max_bytes: Largest sum of the sizes of the items.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._items: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return the item of ``key``. A missing item is made with ``make`` and stored first."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        data = make()  # without the lock, so that other threads can use the cache meanwhile
        with self._lock:
            if key not in self._items:
                self._items[key] = data
                self._num_bytes += len(data)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= len(self._items.popitem(last=False)[1])
        return data
