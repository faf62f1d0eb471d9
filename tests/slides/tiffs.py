"""Real slide files, small."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def write_tiff(
    path: Path,
    *levels: Pixels,
    mpp: float | Sequence[float] | None = None,
    tile: tuple[int, int] | None = (64, 64),
    compression: str | None = "zlib",
    unit: str = "CENTIMETER",
) -> Path:
    """Write levels as a tiled TIFF, or as a plain one of strips where ``tile`` is None."""
    with tifffile.TiffWriter(path) as writer:
        for at, pixels in enumerate(levels):
            extra = {"extrasamples": ["unassalpha"]} if pixels.shape[2] == 4 else {}
            if mpp is not None:
                x, y = (mpp, mpp) if isinstance(mpp, float | int) else mpp
                scale = pixels.shape[1] / levels[0].shape[1]
                um = 10_000 if unit == "CENTIMETER" else 25_400
                extra |= {"resolution": (um / x * scale, um / y * scale), "resolutionunit": unit}
            writer.write(
                pixels,
                photometric="rgb",
                tile=tile,
                compression=compression,
                rowsperstrip=None if tile else 16,
                subfiletype=1 if at else 0,
                metadata=None,
                software=False,
                **extra,
            )
    return path


def noise(height: int, width: int, *, seed: int = 0, channels: int = 3) -> Pixels:
    """Return pixels that are all different: shape (height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def halved(pixels: Pixels) -> Pixels:
    """Return the mean of each 2 x 2 px, an odd last row or column left out."""
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
