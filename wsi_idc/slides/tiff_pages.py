"""Check the pages of a TIFF without a vendor's format, and read its microns per px.

OpenSlide and Pillow read the first page of such a TIFF as the slide, also if the page has only one
channel or shows the label. Both decode samples of other types as if they were 8-bit RGB.
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wsi_idc.core.errors import DAMAGED_IMAGE, SlideError, first_line

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274  # TIFF 6.0, section 8
_UPRIGHT = 1
_SAMPLE_TYPES = ("bool", "uint8")
# Names of TIFF 6.0: grey (0 and 1), RGB, palette, CMYK, YCbCr.
_GREY, _PHOTOMETRICS = (0, 1), (0, 1, 2, 3, 5, 6)
_MAX_TILED_CHANNELS, _UNSPECIFIED = 4, 0
_UM = {"nm": 1e-3, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25_400.0}


def is_tiff(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` is a TIFF or BigTIFF."""
    return head[:4] in _MAGIC


def read_tiff_mpp(path: Path) -> tuple[float, float] | None:
    """Check a TIFF; return the mpp along x and y from the OME-XML or ImageJ metadata in the TIFF.

    Returns:
        Microns per px of the first page, not checked; None if the metadata have no such value.

    Raises:
        SlideError: The first page is not the complete slide in color, or is tiled and not upright,
            or the pages cannot be checked.
    """
    import tifffile

    # The log of tifffile describes damage in words of the TIFF format; the errors here are clearer.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            pages, imagej = list(file.pages), file.imagej_metadata or {}
            image = _first_image(file.ome_metadata)
            _check_pages(path, pages, _num_planes(image, imagej, pages[0]))
            return _ome_mpp(image) or _imagej_mpp(imagej, pages[0])
    except (*DAMAGED_IMAGE, tifffile.TiffFileError) as error:
        raise SlideError(
            f"{path}: the pages of the TIFF cannot be checked ({first_line(error)}); copy the "
            "slide again, or save it as a single RGB page"
        ) from None


def _check_pages(path: Path, pages: Sequence[Any], num_planes: int) -> None:
    """Raise SlideError if the first page of a TIFF is not the complete slide in color."""
    first = pages[0]
    size = (first.imagewidth, first.imagelength)
    others = {
        number: (page.imagewidth, page.imagelength)
        for number, page in enumerate(pages[1:], start=2)
        if not (page.is_reduced or page.is_mask)
    }
    for number, (width, height) in others.items():
        if width * height > math.prod(size):
            raise SlideError(
                f"{path}: page {number} of {width}x{height} px is larger than the first page, "
                "which is the only one that is read; save that page as a TIFF of its own"
            )
    if (num := max(num_planes, 1 + list(others.values()).count(size))) > 1:
        raise SlideError(
            f"{path}: has {num} planes of {size[0]}x{size[1]} px, such as channels or depths, and "
            "only the first is read; save the slide as a single RGB page"
        )
    if str(first.dtype) not in _SAMPLE_TYPES:
        raise SlideError(f"{path}: its samples are {first.dtype}; save it with 8 bits a channel")
    channels = first.samplesperpixel
    if first.photometric not in _PHOTOMETRICS or (first.photometric in _GREY and channels > 2):
        kind = getattr(first.photometric, "name", first.photometric)
        raise SlideError(
            f"{path}: {channels} channels of type {kind} are not supported; save the slide as RGB"
        )
    if first.is_tiled and (channels > _MAX_TILED_CHANNELS or _UNSPECIFIED in first.extrasamples):
        raise SlideError(
            f"{path}: has {channels} channels, some are neither color nor alpha; save it as RGB"
        )
    orientation = first.tags.valueof(_ORIENTATION, _UPRIGHT)
    if first.is_tiled and orientation != _UPRIGHT:
        raise SlideError(
            f"{path}: has the orientation {orientation}, which would turn each tile separately; "
            "save it upright, with orientation 1"
        )


def _first_image(ome: str | None) -> Mapping[str, str]:
    """Return the attributes of the first element ``Pixels`` of OME-XML."""
    with contextlib.suppress(ElementTree.ParseError):
        pixels = None if ome is None else ElementTree.fromstring(ome).find(".//{*}Pixels")
        return {} if pixels is None else pixels.attrib
    return {}


def _num_planes(image: Mapping[str, str], imagej: Mapping[str, Any], first: Any) -> int:
    """Return the number of planes (channels, depths, times); the colors of a page are one plane."""
    sizes = (image.get(f"Size{axis}", "1") for axis in "CZT")
    planes = math.prod(int(size) if size.isdecimal() else 1 for size in sizes)
    return max(planes // first.samplesperpixel, int(imagej.get("images", 1)))


def _ome_mpp(image: Mapping[str, str]) -> tuple[float, float] | None:
    with contextlib.suppress(KeyError, ValueError):
        x, y = (
            float(image[f"PhysicalSize{axis}"]) * _um(image.get(f"PhysicalSize{axis}Unit", "um"))
            for axis in "XY"
        )
        return x, y
    return None


def _imagej_mpp(imagej: Mapping[str, Any], first: Any) -> tuple[float, float] | None:
    with contextlib.suppress(KeyError, ValueError, TypeError, ZeroDivisionError, AttributeError):
        um = _um(imagej["unit"])
        x, y = (
            um * denominator / numerator
            for numerator, denominator in (
                first.tags["XResolution"].value,
                first.tags["YResolution"].value,
            )
        )
        return x, y
    return None


def _um(unit: str) -> float:
    """Return the length of a unit in microns; raise KeyError if the unit is unknown."""
    for micro in ("µ", "μ", "\\u00B5"):  # micro sign, Greek mu, escaped in ImageJ's text
        unit = unit.replace(micro, "u")
    return _UM[unit]
