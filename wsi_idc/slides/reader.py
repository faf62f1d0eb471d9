"""Interface of a slide reader."""

from abc import ABC, abstractmethod

import cv2
import numpy as np
from numpy.typing import NDArray

_WHITE = 255


class SlideReader(ABC):
    """Reader of the pixels of a slide, level by level.

    Attributes:
        sizes: Width and height of each level in px of the level, level 0 first.
        downsamples: Level-0 px per px of each level.
        file_mpp: Microns per level-0 px along x and y as the file states them, unchecked; None if
            the file states none.
    """

    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    file_mpp: tuple[float, float] | None

    @abstractmethod
    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region in px of the level, shape (height, width, 3); white outside the slide.

        Threads may call it concurrently.

        Raises:
            SlideError: The region cannot be read; other regions may be readable.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file; reads in progress finish normally."""


def composite_on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite RGBA pixels (h, w, 4), not premultiplied, on white."""
    alpha = rgba[..., 3:]
    if alpha.min(initial=_WHITE) == _WHITE:
        # Several times faster than a copy of the first three channels.
        return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
    weight = alpha.astype(np.uint16)
    mixed = rgba[..., :3] * weight + _WHITE * (_WHITE - weight)
    # Rounded to nearest; 255 * 255 + 127 fits into 16 bits.
    return ((mixed + _WHITE // 2) // _WHITE).astype(np.uint8)
