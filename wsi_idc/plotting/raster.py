"""Make pictures from arrays of values, and draw pictures on a page without interpolation.

A picture is a uint8 array [row, col, channel]. A grid is an array of values, shape (rows, cols).
A grid covers a picture completely: the first cell begins at the first pixel, and the last cell ends
at the last pixel. The sides of two cells may differ by one pixel.
"""

from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist, allow_rasterization
from numpy.typing import NDArray

from wsi_idc.plotting.colors import COLORMAPS, SEE_THROUGH

Pixels = NDArray[np.uint8]

NUM_COLORS = 256
# Transparent white: programs that ignore transparency show white.
CLEAR = (255, 255, 255, 0)
_OPAQUE = 255
_OPAQUE_FROM = 0.5  # fraction of the color scale from which a color has its full opacity
_STRIP_PX = 256  # pictures are painted in strips of this height, to limit the memory


def color_table(name: str, *, opacity: NDArray[np.float64] | float = 1.0) -> Pixels:
    """Return a colormap of matplotlib as a table of colors.

    Args:
        name: Name of the colormap in matplotlib.
        opacity: Opacity from 0 to 1: one number for all colors, or one number per color.

    Returns:
        RGBA colors of 256 equally spaced values from 0 to 1, shape (256, 4).
    """
    colors = colormaps[name].resampled(NUM_COLORS)(np.arange(NUM_COLORS))
    colors[:, 3] = opacity
    return np.rint(colors * 255).astype(np.uint8)


def layer_table(name: str) -> Pixels:
    """Return the color table of the layer ``name``: RGBA colors, shape (256, 4).

    If the layer is in ``SEE_THROUGH``, the opacity of a color grows with the value, so that the
    tissue below the layer is visible where the value is low.
    """
    is_see_through = name in SEE_THROUGH
    opacity = np.minimum(np.linspace(0, 1, NUM_COLORS) / _OPAQUE_FROM, 1) if is_see_through else 1.0
    return color_table(COLORMAPS[name], opacity=opacity)


def colorize(values: NDArray[np.float32], table: Pixels) -> Pixels:
    """Return the color of each value. NaN is transparent.

    Args:
        values: Values of any shape; they are clipped to the range from 0 to 1.
        table: RGBA of the values from 0 to 1, shape (256, 4).

    Returns:
        RGBA of each value, shape (*values.shape, 4).
    """
    known = np.nan_to_num(np.clip(values, 0, 1), nan=0.0)
    colors = table[(known * (NUM_COLORS - 1)).round().astype(np.uint8)]
    colors[np.isnan(values)] = CLEAR
    return colors


def overlay_colormap(ground: Pixels, values: NDArray[np.float32], table: Pixels) -> Pixels:
    """Blend the colors of a grid with a picture.

    Args:
        ground: Picture below the grid, shape (h, w, 3).
        values: Values of the grid, shape (rows, cols); they are clipped to the range from 0 to 1.
            NaN is transparent.
        table: RGBA of the values from 0 to 1, shape (256, 4).

    Returns:
        The blended picture, shape (h, w, 3).
    """
    height, width, _ = ground.shape
    rows, cols = (
        _cells_of_pixels(*sides) for sides in zip((height, width), values.shape, strict=True)
    )
    known = np.clip(np.nan_to_num(values, nan=0.0), 0, 1)
    index = np.minimum((known * NUM_COLORS).astype(np.uint16), NUM_COLORS - 1)
    colors = table[index]  # (rows, cols, 4)
    colors[np.isnan(values), 3] = 0
    painted = np.empty_like(ground)
    for top in range(0, height, _STRIP_PX):
        strip = slice(top, top + _STRIP_PX)
        over = colors[rows[strip]][:, cols].astype(np.uint16)
        opacity = over[..., 3:]
        # 255 * 255 + 127 fits into 16 bits. The 127 rounds the result.
        mixed = ground[strip] * (255 - opacity) + over[..., :3] * opacity + 127
        painted[strip] = mixed // 255
    return painted


def to_gray(picture: Pixels) -> Pixels:
    """Convert a picture to gray. The result still has three channels, shape (h, w, 3)."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def downscale(picture: NDArray, *, height: int, width: int) -> NDArray:
    """Shrink a picture or grid to at most ``height`` x ``width``.

    Each pixel of the result is the mean of an area of ``picture``. All these areas have equal size.
    """
    height, width = min(height, picture.shape[0]), min(width, picture.shape[1])
    if (height, width) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def resize(picture: NDArray, *, height: int, width: int) -> NDArray:
    """Resize a picture to ``height`` x ``width``: average pixels to shrink, repeat to enlarge."""
    picture = downscale(picture, height=height, width=width)
    rows = _cells_of_pixels(height, picture.shape[0])
    cols = _cells_of_pixels(width, picture.shape[1])
    return picture[rows[:, None], cols]


def _cells_of_pixels(pixels: int, cells: int) -> NDArray[np.int64]:
    """Divide a side of ``pixels`` pixels into ``cells`` cells; return the cell of each pixel.

    The result has the shape (pixels,). A pixel belongs to the cell at the center of the pixel.
    """
    return (2 * np.arange(pixels) + 1) * cells // (2 * pixels)


class Raster(Artist):
    """Artist that draws a picture of shape (h, w, 3) over all of its axes.

    The picture is resized to the resolution of the figure. matplotlib's ``imshow`` is not used:
    it needs about a hundred bytes per pixel, which is gigabytes for a slide. ``Figure.figimage`` is
    not used: it needs the resolution before the figure is saved, when the resolution is unknown.
    """

    def __init__(self, picture: Pixels) -> None:
        super().__init__()
        self.picture = picture
        self.set_zorder(0)

    @allow_rasterization
    def draw(self, renderer: Any) -> None:
        """Draw the picture."""
        assert self.axes is not None
        # The unit of a PDF is the point, and the pixels of its pictures are smaller than a point.
        scale = renderer.get_image_magnification()
        left, bottom, right, top = np.rint(self.axes.bbox.extents * scale).astype(int)
        height, width = max(1, top - bottom), max(1, right - left)
        drawn = np.full((height, width, 4), _OPAQUE, np.uint8)
        drawn[..., :3] = resize(self.picture, height=height, width=width)[::-1]
        context = renderer.new_gc()
        renderer.draw_image(context, left / scale, bottom / scale, drawn)
        context.restore()
        self.stale = False
