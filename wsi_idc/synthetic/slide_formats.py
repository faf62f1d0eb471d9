"""Write pixels as small slides in three formats: pyramidal TIFF, SCN, and OME-TIFF."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_UM_PER_CM = 10_000
_OPTIONS: dict[str, Any] = {
    "tile": (256, 256),
    "compression": "zlib",
    "resolutionunit": "CENTIMETER",
    "software": False,
}


def write_pyramid(path: Path, rgb: Pixels, *, mpp: float, num_levels: int = 3) -> None:
    """Write a tiled TIFF; each level has half the width and height of the previous level.

    Args:
        path: File to write.
        rgb: Pixels of level 0, shape (height, width, 3), uint8.
        mpp: Microns per px of level 0.
        num_levels: Number of levels.
    """
    options = _OPTIONS | {"photometric": "rgb", "predictor": True, "metadata": None}
    # Each level is a page of the TIFF. OpenSlide reads such a file as a generic tiled TIFF.
    with tifffile.TiffWriter(path) as writer:
        for level in range(num_levels):
            per_cm = _UM_PER_CM / (mpp * 2**level)
            text = f"synthetic tissue, {mpp:g} um/px" if level == 0 else None
            kind = 1 if level else 0  # bit 0 marks a smaller version of another page
            writer.write(
                rgb, subfiletype=kind, resolution=(per_cm, per_cm), description=text, **options
            )
            size = (rgb.shape[1] // 2, rgb.shape[0] // 2)
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def write_channels(path: Path, rgb: Pixels, *, mpp: float) -> None:
    """Write an OME-TIFF that has a page for each of the channels red, green and blue.

    Args:
        path: File to write, with the suffix ``.ome.tif``.
        rgb: Pixels, shape (height, width, 3), uint8.
        mpp: Microns per px.
    """
    metadata = {
        "axes": "CYX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, path.name)),
        "Creator": "wsi-idc",
        "Channel": {"Name": ["Red", "Green", "Blue"]},
        **{f"PhysicalSize{axis}": mpp for axis in "XY"},
        **{f"PhysicalSize{axis}Unit": "\u00b5m" for axis in "XY"},
    }
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            np.ascontiguousarray(np.moveaxis(rgb, 2, 0)),
            photometric="minisblack",
            metadata=metadata,
            resolution=(_UM_PER_CM / mpp, _UM_PER_CM / mpp),
            **_OPTIONS,
        )


def write_scn(
    path: Path, area: Pixels, *, x: int, y: int, glass: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write a slide in Leica's format SCN: a glass with one scanned area.

    OpenSlide reports the position and the size of the scanned area in the properties
    ``openslide.bounds-*``. Slides in the formats MRXS and BIF also have these properties.

    Args:
        path: File to write, with the suffix ``.scn``.
        area: Pixels of the scanned area, shape (height, width, 3), uint8.
        x: Left edge of the area on the glass in px.
        y: Top edge of the area on the glass in px.
        glass: Width and height of the glass in px.
        mpp: Microns per px.

    Returns:
        ``path``.
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
    options = _OPTIONS | {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        resolution = _UM_PER_CM / mpp
        writer.write(macro, description=description, resolution=(500, 500), **options)
        writer.write(area, resolution=(resolution, resolution), **options)
    return path


def _scn_image(
    at: int, shape: Sequence[int], *, objective: float, mpp: float, **view: float
) -> str:
    """Return the XML text of one image of an SCN file.

    Args:
        at: Number of the page with the pixels.
        shape: Height and width of the pixels.
        objective: Magnification of the objective.
        mpp: Microns per level-0 px.
        view: Position and size of the image on the glass in level-0 px.
    """
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
