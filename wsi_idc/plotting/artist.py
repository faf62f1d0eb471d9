"""A picture in axes, pixel for pixel and without the room that matplotlib's own images take.

``imshow`` takes about a hundred bytes a pixel while it fits a picture to the page: gigabytes for a
slide at print resolution.
"""

from typing import Any

import numpy as np
from matplotlib.artist import Artist, allow_rasterization
from matplotlib.axes import Axes

from wsi_idc.plotting.raster import Pixels, resize

_OPAQUE = 255


class Raster(Artist):
    """A picture that fills its axes."""

    def __init__(self, picture: Pixels) -> None:
        super().__init__()
        self.picture = picture
        self.set_zorder(0)

    @classmethod
    def add_to(cls, ax: Axes, picture: Pixels) -> None:
        """Fill axes with a picture, shape (h, w, 3)."""
        ax.add_artist(cls(picture))

    @allow_rasterization
    def draw(self, renderer: Any) -> None:
        """Draw the picture, fitted to the pixels of the page."""
        assert self.axes is not None
        # A PDF is measured in points and has its pixels finer than that.
        scale = renderer.get_image_magnification()
        left, bottom, right, top = np.rint(self.axes.bbox.extents * scale).astype(int)
        height, width = max(1, top - bottom), max(1, right - left)
        drawn = np.full((height, width, 4), _OPAQUE, np.uint8)
        drawn[..., :3] = resize(self.picture, height=height, width=width)[::-1]
        context = renderer.new_gc()
        renderer.draw_image(context, left / scale, bottom / scale, drawn)
        context.restore()
        self.stale = False
