"""Real slide files, small."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from wsi_idc.slides.slide import Slide
from wsi_idc.synthetic.slide_formats import write_scn as write_scn

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


def damage(path: Path) -> None:
    """Overwrite 100 bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)


def spy_on(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that receives level, x, y, width and height of each read."""
    reads = []
    read = slide.read

    def note(level, x, y, *, width, height):
        reads.append((level, x, y, width, height))
        return read(level, x, y, width=width, height=height)

    monkeypatch.setattr(slide, "read", note)
    slide.num_readers = 1
    return reads
