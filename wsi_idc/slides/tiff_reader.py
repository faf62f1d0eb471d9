"""Read TIFF slides that OpenSlide and Pillow read wrongly.

For example, the page of the slide is not upright, or each page has only one color.
"""

import functools
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError, first_line
from wsi_idc.slides.reader import CACHE_BYTES, SlideReader, check_num_px, composite_on_white
from wsi_idc.slides.tiff_pages import DAMAGED_TIFF, TRANSPOSED, find_slide, is_decodable

_WHITE = 255
# Values of TIFF 6.0: photometric interpretations, planes for each color, and associated alpha.
_WHITE_IS_ZERO, _PALETTE = 0, 3
_PLANAR, _PREMULTIPLIED = 2, 1
_JPEG = 7
# Orientations with the first column at the right, and with the first row at the bottom.
_FLIPPED_X, _FLIPPED_Y = (2, 3, 6, 7), (3, 4, 7, 8)


class TiffReader(SlideReader):
    """Reader of a TIFF slide; tifffile decodes each tile, or the complete page if it has no tiles.

    Args:
        path: TIFF file.

    Raises:
        SlideError: The file is damaged, or no page is a slide that can be read.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        self._path = path
        self._lock = threading.Lock()  # all threads share the position in the file
        try:
            self._file = tifffile.TiffFile(path)
        except (*DAMAGED_TIFF, tifffile.TiffFileError) as error:
            raise SlideError(f"{path}: damaged or cut short ({first_line(error)})") from None
        try:
            slide = find_slide(path, self._file)
            self._orientation = slide.orientation
            self._levels = slide.levels if slide.levels[0][0].is_tiled else slide.levels[:1]
            for page in (page for level in self._levels for page in level):
                _check_page(path, page)
            sizes = [(page.imagewidth, page.imagelength) for page, *_ in self._levels]
            is_transposed = slide.orientation in TRANSPOSED
            self.sizes = tuple(size[::-1] if is_transposed else size for size in sizes)
            self.downsamples = tuple(sizes[0][0] / width for width, _ in sizes)
            self.file_mpp = slide.mpp
            num_px = max(math.prod(_tile_size(page)) for page, *_ in self._levels)
            num_tiles = max(1, CACHE_BYTES // (3 * num_px))
            self._tile = functools.lru_cache(maxsize=num_tiles)(self._decode_tile)
            is_tiled = self._levels[0][0].is_tiled
            self._picture = None if is_tiled else self._decode_tile(0, 0)
        except BaseException:
            self._file.close()
            raise

    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see ``SlideReader.read``."""
        flips_x, flips_y = self._orientation in _FLIPPED_X, self._orientation in _FLIPPED_Y
        x = self.sizes[level][0] - x - width if flips_x else x
        y = self.sizes[level][1] - y - height if flips_y else y
        if self._orientation in TRANSPOSED:
            region = self._read_stored(level, y, x, width=height, height=width).swapaxes(0, 1)
        else:
            region = self._read_stored(level, x, y, width=width, height=height)
        upright = region[:: -1 if flips_y else 1, :: -1 if flips_x else 1]
        return np.ascontiguousarray(upright)

    def close(self) -> None:
        """Close the slide file; reads that begin later fail."""
        with self._lock:
            self._file.close()
        self._tile.cache_clear()
        self._picture = None

    def _read_stored(
        self, level: int, x: int, y: int, *, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Read a region of a level in the orientation of the file, which may not be upright.

        Returns:
            RGB pixels, shape (height, width, 3), uint8.
        """
        region = np.full((height, width, 3), _WHITE, np.uint8)
        page = self._levels[level][0]
        cols, rows = page.imagewidth, page.imagelength
        tile_width, tile_height = _tile_size(page)
        left, right, top, bottom = max(0, x), min(cols, x + width), max(0, y), min(rows, y + height)
        if left >= right or top >= bottom:
            return region
        for row in range(top // tile_height, math.ceil(bottom / tile_height)):
            for col in range(left // tile_width, math.ceil(right / tile_width)):
                index = row * math.ceil(cols / tile_width) + col
                tile = self._tile(level, index) if self._picture is None else self._picture
                tile_x, tile_y = col * tile_width, row * tile_height
                x0, x1 = max(left, tile_x), min(right, tile_x + tile_width)
                y0, y1 = max(top, tile_y), min(bottom, tile_y + tile_height)
                part = tile[y0 - tile_y : y1 - tile_y, x0 - tile_x : x1 - tile_x]
                region[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return region

    def _decode_tile(self, level: int, index: int) -> NDArray[np.uint8]:
        """Return the RGB pixels of a tile, shape (h, w, 3); a page without tiles is one tile."""
        import tifffile

        try:
            tiles = [_to_rgb(page, self._decode(page, index)) for page in self._levels[level]]
            return tiles[0] if len(tiles) == 1 else np.dstack([tile[..., 0] for tile in tiles])
        except (*DAMAGED_TIFF, tifffile.TiffFileError) as error:
            raise SlideError(
                f"{self._path}: tile {index} of level {level} cannot be read; damaged or cut short "
                f"({first_line(error)})"
            ) from None

    def _decode(self, page: Any, index: int) -> NDArray:
        """Return the samples of a tile, shape (h, w, n); a page without tiles is one tile."""
        is_planar = page.planarconfig == _PLANAR and page.samplesperpixel > 1
        if not page.is_tiled:
            pixels = page.asarray(maxworkers=1)
            pixels = np.moveaxis(pixels, 0, -1) if is_planar else pixels
            return pixels.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        width, height = _tile_size(page)
        plane = math.ceil(page.imagewidth / width) * math.ceil(page.imagelength / height)
        numbers = range(index, len(page.dataoffsets), plane) if is_planar else [index]
        samples = 1 if is_planar else page.samplesperpixel
        return np.dstack(
            [self._decode_segment(page, number, (height, width, samples)) for number in numbers]
        )

    def _decode_segment(self, page: Any, number: int, shape: tuple[int, int, int]) -> NDArray:
        size = page.databytecounts[number]
        if size == 0:  # an empty tile
            return np.full(shape, _WHITE, page.dtype)
        with self._lock:
            self._file.filehandle.seek(page.dataoffsets[number])
            data = self._file.filehandle.read(size)
        tables = {"jpegtables": page.jpegtables} if page.compression == _JPEG else {}
        return page.decode(data, number, _fullsize=True, **tables)[0].reshape(shape)


def _tile_size(page: Any) -> tuple[int, int]:
    """Return width and height of a tile; a page without tiles is one tile."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, page.imagelength


def _to_rgb(page: Any, samples: NDArray) -> NDArray[np.uint8]:
    """Convert the samples of a page to RGB pixels.

    Args:
        page: Page of the TIFF.
        samples: Samples of the page, shape (h, w, n).

    Returns:
        RGB pixels, shape (h, w, 3), uint8.
    """
    if page.photometric == _PALETTE:
        return (np.asarray(page.colormap).T[samples[..., 0]] >> 8).astype(np.uint8)
    samples = samples * np.uint8(_WHITE) if samples.dtype == bool else samples
    if page.photometric == _WHITE_IS_ZERO:
        samples = _WHITE - samples
    if samples.shape[2] < 3:  # grey, or grey and alpha
        samples = np.dstack([samples[..., :1]] * 3 + [samples[..., 1:]])
    if samples.shape[2] == 3:
        return samples
    if page.extrasamples[0] == _PREMULTIPLIED:
        colors = samples[..., :3].astype(np.uint16) + (_WHITE - samples[..., 3:4])
        return np.minimum(colors, _WHITE).astype(np.uint8)
    return composite_on_white(np.ascontiguousarray(samples[..., :4]))


def _check_page(path: Path, page: Any) -> None:
    """Raise SlideError if a page has too many px, or has colors that are not supported."""
    check_num_px(path, *_tile_size(page), is_tile=page.is_tiled)
    if not is_decodable(page):
        kind = getattr(page.photometric, "name", page.photometric)
        raise SlideError(f"{path}: a page of type {kind} is not supported; save the slide as RGB")
