"""Real slide files, small."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from wsi_idc.slides.slide import Slide

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


def write_scn(
    path: Path, area: Pixels, *, x: int, y: int, glass: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write a slide in Leica's layout: a scanned area at ``x, y`` of a glass of width x height px.

    OpenSlide states the area as ``openslide.bounds-*``, as it does for MRXS and BIF.
    """
    height, width = area.shape[:2]
    whole = {"sizeX": glass[0], "sizeY": glass[1]}
    macro = np.full((glass[1] // 20, glass[0] // 20, 3), 230, np.uint8)
    images = "".join(
        _scn_image(at, pixels.shape, objective=objective, mpp=mpp, **view)
        for at, pixels, objective, view in (
            (0, macro, 0.6, {**whole, "offsetX": 0, "offsetY": 0}),
            (1, area, 20, {"sizeX": width, "sizeY": height, "offsetX": x, "offsetY": y}),
        )
    )
    sides = " ".join(f'{name}="{round(side * mpp * 1000)}"' for name, side in whole.items())
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="urn:uuid:1" {sides}>{images}</collection></scn>'
    )
    options = {"photometric": "rgb", "tile": (256, 256), "metadata": None, "compression": "zlib"}
    options["resolutionunit"] = "CENTIMETER"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        resolution = 10_000 / mpp
        writer.write(macro, description=description, resolution=(500, 500), **options)
        writer.write(area, resolution=(resolution, resolution), **options)
    return path


def _scn_image(
    at: int, shape: Sequence[int], *, objective: float, mpp: float, **view: float
) -> str:
    """Return the XML of a picture; ``view`` is its place on the glass in level-0 px."""
    sides = f'sizeX="{shape[1]}" sizeY="{shape[0]}"'
    place = " ".join(f'{name}="{round(px * mpp * 1000)}"' for name, px in view.items())
    return (
        f'<image name="{at}" uuid="urn:uuid:{at + 2}">'
        "<creationDate>2020-01-01T00:00:00Z</creationDate>"
        '<device model="x" version="1"/>'
        f'<pixels {sides}><dimension {sides} r="0" ifd="{at}"/></pixels>'
        f'<view {place} spacingZ="0"/><scanSettings><objectiveSettings>'
        f"<objective>{objective}</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )


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
