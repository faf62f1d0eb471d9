"""Colours on pixels: numbers in, RGB out, no file and no figure.

Pictures are [row, col, channel], uint8. A grid is laid over a picture by area: its first cell
begins at the first pixel, its last one ends with the last, and nothing in between drifts.
"""

import cv2
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

NUM_COLOURS = 256
TOP_PERCENTILE = 99.5
_STRIP_PX = 256  # high; bounds what is held besides the picture itself


def colour_table(name: str, *, opacity: NDArray[np.float64] | float = 1.0) -> Pixels:
    """Return a colour map of matplotlib's as a table for ``paint``.

    Args:
        name: matplotlib's name of it.
        opacity: 0 to 1, one for all colours or one each.

    Returns:
        RGBA of the values from 0 to 1, shape (256, 4).
    """
    colours = colormaps[name].resampled(NUM_COLOURS)(np.arange(NUM_COLOURS))
    colours[:, 3] = opacity
    return np.rint(colours * 255).astype(np.uint8)


def robust_max(values: NDArray[np.float32]) -> float:
    """Return the value that is drawn at full strength, one for all values of a patient.

    What lies above is drawn alike: a single glowing pixel should not darken the rest.
    """
    finite = values[np.isfinite(values)]
    top = float(np.percentile(finite, TOP_PERCENTILE)) if finite.size else 0.0
    return top if top > 0 else 1.0


def overlay_colormap(ground: Pixels, values: NDArray[np.float32], table: Pixels) -> Pixels:
    """Lay the colours of a grid over a picture.

    Args:
        ground: The picture, shape (h, w, 3).
        values: The grid, shape (rows, cols): 0 to 1, clipped; NaN leaves the picture as it is.
        table: RGBA by value, shape (256, 4).

    Returns:
        A new picture, shape (h, w, 3).
    """
    height, width, _ = ground.shape
    rows, cols = (
        _cells_of_pixels(*sides) for sides in zip((height, width), values.shape, strict=True)
    )
    known = np.clip(np.nan_to_num(values, nan=0.0), 0, 1)
    index = np.minimum((known * NUM_COLOURS).astype(np.uint16), NUM_COLOURS - 1)
    colours = table[index]  # (rows, cols, 4)
    colours[np.isnan(values), 3] = 0
    painted = np.empty_like(ground)
    for top in range(0, height, _STRIP_PX):
        strip = slice(top, top + _STRIP_PX)
        over = colours[rows[strip]][:, cols].astype(np.uint16)
        opacity = over[..., 3:]
        # 255 * 255 and the half that rounds still fit into 16 bits.
        mixed = ground[strip] * (255 - opacity) + over[..., :3] * opacity + 127
        painted[strip] = mixed // 255
    return painted


def to_gray(picture: Pixels) -> Pixels:
    """Return a picture without its hues, shape (h, w, 3): what is laid over it keeps its own."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def downscale(picture: NDArray, *, height: int, width: int) -> NDArray:
    """Return a picture or grid, at most ``height`` x ``width``, as means over equal areas."""
    height, width = min(height, picture.shape[0]), min(width, picture.shape[1])
    if (height, width) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def resize(picture: NDArray, *, height: int, width: int) -> NDArray:
    """Return a picture or grid as ``height`` x ``width``: shrunk by area, enlarged by copies."""
    picture = downscale(picture, height=height, width=width)
    rows = _cells_of_pixels(height, picture.shape[0])
    cols = _cells_of_pixels(width, picture.shape[1])
    return picture[rows[:, None], cols]


def _cells_of_pixels(pixels: int, cells: int) -> NDArray[np.int64]:
    """Return the cell under the centre of each pixel of an axis, shape (pixels,)."""
    return (2 * np.arange(pixels) + 1) * cells // (2 * pixels)
