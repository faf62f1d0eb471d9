"""What a slide file must be able to do, whatever reads it."""

from abc import ABC, abstractmethod

import cv2
import numpy as np
from numpy.typing import NDArray

_WHITE = 255


class SlideReader(ABC):
    """A slide's pixels, level by level.

    Attributes:
        sizes: Width and height of each level in its own px, level 0 first.
        downsamples: Level-0 px per px of each level.
        stated_mpp: Microns per level-0 px along x and y as the file states them, unchecked; None
            where it states nothing.
    """

    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    file_mpp: tuple[float, float] | None

    @abstractmethod
    def read(self, level: int, x: int, y: int, *, width: int, height: int) -> NDArray[np.uint8]:
        """Return a region, all in px of the level, shape (height, width, 3), white outside.

        Threads may call it at the same time.

        Raises:
            SlideError: The region cannot be read. Others may still be.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the file back; a read that is under way ends well."""


def composite_on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay pixels of shape (h, w, 4), their colour not multiplied by alpha, on white."""
    alpha = rgba[..., 3:]
    if alpha.min(initial=_WHITE) == _WHITE:
        # Several times as fast as a copy of the first three channels.
        return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
    weight = alpha.astype(np.uint16)
    mixed = rgba[..., :3] * weight + _WHITE * (_WHITE - weight)
    # Rounded to nearest; 255 * 255 + 127 fits 16 bits.
    return ((mixed + _WHITE // 2) // _WHITE).astype(np.uint8)
