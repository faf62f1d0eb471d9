"""Find the slide and its mpp in the pages of a TIFF that has no scanner vendor's format.

OpenSlide and Pillow read the first page of such a TIFF as the slide. But this page may show the
label, or have only one channel. Both programs decode samples of any type as 8-bit RGB. If a page is
not upright, OpenSlide turns each tile but does not move the tiles.
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wsi_idc.core.errors import DAMAGED_IMAGE, SlideError, first_line
from wsi_idc.slides.reader import UM_PER_UNIT

# Errors that tifffile and imagecodecs raise on a damaged TIFF, besides TiffFileError.
DAMAGED_TIFF = (*DAMAGED_IMAGE, ArithmeticError, RuntimeError)
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION, _UPRIGHT = 274, 1  # TIFF 6.0, section 8
TRANSPOSED = (5, 6, 7, 8)  # orientations with rows and columns exchanged
_SAMPLE_TYPES = ("bool", "uint8")
# Photometric interpretations of TIFF 6.0.
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR = (0, 1), 2, 3, 5, 6
_PHOTOMETRICS = (*_GREY, _RGB, _PALETTE, _CMYK, _YCBCR)
_JPEG = 7
# Compressions that OpenSlide and Pillow decode: none, fax, LZW, JPEG, deflate, PackBits, Zstandard.
_COMMON_COMPRESSIONS = (1, 2, 3, 4, 5, 6, _JPEG, 8, 32773, 32946, 50000)
_MAX_TILED_CHANNELS, _UNSPECIFIED = 4, 0
_NUM_COLORS = 3
_MAX_STRETCH = 0.02  # maximum relative difference between the aspect ratios of two levels
_UM = {"nm": 1e-3, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25_400.0}
# Attributes of a channel in OME-XML that only fluorescence has.
_FLUORESCENCE = ("EmissionWavelength", "ExcitationWavelength", "Fluor")
_COLOR_NAMES = (("red", "r"), ("green", "g"), ("blue", "b"))


@dataclass(frozen=True)
class TiffSlide:
    """Pages of a TIFF that show the slide.

    Attributes:
        levels: Pages of each level, level 0 first. A level is a page in color, or 3 pages: R, G, B.
        mpp: Microns per level-0 px along x and y of the upright slide, not checked; None if the
            file does not state them.
        orientation: Orientation of the pages as in TIFF 6.0; 1 is upright.
        number: Number of the first page of the slide, counted from 1.
        is_plain: Whether OpenSlide or Pillow reads the slide correctly, without ``TiffReader``.
    """

    levels: Sequence[Sequence[Any]]
    mpp: tuple[float, float] | None
    orientation: int
    number: int
    is_plain: bool


def is_tiff(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` is a TIFF or BigTIFF."""
    return head[:4] in _MAGIC


def inspect_tiff(path: Path) -> TiffSlide:
    """Choose the pages of a TIFF that show the slide; see ``find_slide``."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return find_slide(path, file)
    except (*DAMAGED_TIFF, tifffile.TiffFileError) as error:
        raise SlideError(_unreadable(path, error)) from None


def find_slide(path: Path, file: Any) -> TiffSlide:
    """Choose the pages of an open ``tifffile.TiffFile`` that show the slide.

    The slide is the largest page, or the first of several largest pages.

    Raises:
        SlideError: No page is a complete slide in color, or the pages cannot be checked.
    """
    import tifffile

    # The log of tifffile describes damage in words of the TIFF format; the errors here are clearer.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        return _find_slide(path, file)
    except (*DAMAGED_TIFF, tifffile.TiffFileError) as error:
        raise SlideError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path}: the pages of the TIFF cannot be checked ({first_line(error)}); copy the slide "
        "again, or save it as a single RGB page"
    )


def _find_slide(path: Path, file: Any) -> TiffSlide:
    pages = list(file.pages)
    if not pages:
        raise SlideError(f"{path}: a TIFF that is cut short or damaged; copy the slide again")
    for page in pages:
        _check_sides(page)
    full = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages[:1]
    size = max(map(_size, full), key=math.prod)
    same = [page for page in full if _size(page) == size]
    first = same[0]
    image, imagej = _ome_image(file.ome_metadata, size), file.imagej_metadata or {}
    channels = _color_channels(path, image, same)
    num_planes = max(_num_planes(image, imagej, first), len(same))
    if not channels and num_planes > 1:
        raise SlideError(
            f"{path}: has {num_planes} planes of {size[0]}x{size[1]} px, such as channels or "
            "depths, and only one can be read; save the slide as a single RGB page"
        )
    for page in channels or [first]:
        _check_samples(path, page)
    number = pages.index(first) + 1
    orientation = int(first.tags.valueof(_ORIENTATION, _UPRIGHT))
    orientation = orientation if orientation in range(1, 9) else _UPRIGHT
    mpp = _ome_mpp(image) or _imagej_mpp(imagej, first)
    levels = _find_levels(channels or [first], pages)
    is_plain = not channels and number == 1 and (orientation == _UPRIGHT or not first.is_tiled)
    # OME-TIFF stores the levels as sub-images, which OpenSlide does not read.
    has_sub_images = first.is_tiled and first.pages and len(levels) > 1
    is_rare = first.compression not in _COMMON_COMPRESSIONS
    is_plain &= not ((has_sub_images or is_rare) and is_decodable(first))
    if not is_plain:
        mpp = mpp or _tag_mpp(first)
    if mpp and orientation in TRANSPOSED:
        mpp = mpp[::-1]
    return TiffSlide(levels, mpp, orientation, number, is_plain)


def is_decodable(page: Any) -> bool:
    """Return whether ``TiffReader`` can convert the colors of a page to RGB."""
    is_jpeg = page.photometric == _YCBCR and page.compression == _JPEG
    return is_jpeg or page.photometric in (*_GREY, _RGB, _PALETTE)


def _size(page: Any) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def _check_sides(page: Any) -> None:
    """Raise ValueError if the size of a page or of its tiles is not two positive integers."""
    sides = [*_size(page), *((page.tilewidth, page.tilelength) if page.is_tiled else ())]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError("a page has no valid size")


def _color_channels(path: Path, image: Any, pages: Sequence[Any]) -> list[Any]:
    """Return the pages of red, green and blue; the list is empty if each page has all colors.

    Raises:
        SlideError: The channels are not red, green and blue.
    """
    is_split = image is not None and image.get("SizeC") == str(_NUM_COLORS) == str(len(pages))
    if not is_split or any(page.samplesperpixel > 1 for page in pages):
        return []
    channels = image.findall("{*}Channel")
    names = [str(channel.get("Name", "")) for channel in channels]
    is_fluorescent = any(channel.get(name) for channel in channels for name in _FLUORESCENCE)
    is_fluorescent |= any(channel.get("ContrastMethod") == "Fluorescence" for channel in channels)
    has_color_names = all(
        not name or name.lower().removeprefix("channel ").strip() in colors
        for name, colors in zip(names, _COLOR_NAMES, strict=False)
    )
    if is_fluorescent or not has_color_names:
        raise SlideError(
            f"{path}: its channels ({', '.join(filter(None, names)) or 'fluorescence'}) are not "
            "red, green and blue; the models need a slide in the colors of H&E"
        )
    return list(pages)


def _find_levels(first: Sequence[Any], pages: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the pages of each level.

    Level 0 is ``first``. The other levels are the sub-images of ``first``. Without sub-images, the
    other levels are the later pages that the file marks as reduced.
    """
    levels: list[Sequence[Any]] = [first]
    sub_images = [list(page.pages or ()) for page in first]
    candidates: list[Sequence[Any]] = list(zip(*sub_images, strict=False))
    if not candidates and len(first) == 1:
        candidates = [[page] for page in pages[pages.index(first[0]) + 1 :] if page.is_reduced]
    width, height = _size(first[0])
    for level in candidates:
        for page in level:
            _check_sides(page)
        cols, rows = _size(level[0])
        is_smaller = 0 < cols < _size(levels[-1][0])[0]
        fits = abs(cols * height / (rows * width) - 1) <= _MAX_STRETCH + 1 / min(cols, rows)
        if is_smaller and fits and all(_is_alike(*pair) for pair in zip(level, first, strict=True)):
            levels.append(level)
    return levels


def _is_alike(page: Any, other: Any) -> bool:
    """Return whether two pages have the same sample type and colors, and the same use of tiles."""
    return all(
        getattr(page, name) == getattr(other, name)
        for name in ("dtype", "samplesperpixel", "photometric", "extrasamples", "is_tiled")
    )


def _check_samples(path: Path, page: Any) -> None:
    """Raise SlideError if the samples of a page are not 8-bit colors."""
    if str(page.dtype) not in _SAMPLE_TYPES:
        raise SlideError(f"{path}: the samples are {page.dtype}; save the slide with 8 bits")
    channels = page.samplesperpixel
    if page.photometric not in _PHOTOMETRICS or (page.photometric in _GREY and channels > 2):
        kind = getattr(page.photometric, "name", page.photometric)
        raise SlideError(
            f"{path}: {channels} channels of type {kind} are not supported; save the slide as RGB"
        )
    if page.is_tiled and (channels > _MAX_TILED_CHANNELS or _UNSPECIFIED in page.extrasamples):
        raise SlideError(
            f"{path}: has {channels} channels, of which some are neither color nor alpha; save "
            "the slide as RGB"
        )


def _ome_image(ome: str | None, size: tuple[int, int]) -> Any:
    """Return the element ``Pixels`` of the OME-XML text ``ome`` that has the size ``size``.

    If no element has the size, return the first element. If there is no element, return None.
    """
    with contextlib.suppress(ElementTree.ParseError):
        images = [] if ome is None else ElementTree.fromstring(ome).findall(".//{*}Pixels")
        sides = tuple(map(str, size))
        same = [image for image in images if (image.get("SizeX"), image.get("SizeY")) == sides]
        return next(iter(same or images), None)
    return None


def _num_planes(image: Any, imagej: Mapping[str, Any], first: Any) -> int:
    """Return the number of planes: channels x depths x times.

    The red, green and blue of a page in color count as one plane.
    """
    sizes = () if image is None else (image.get(f"Size{axis}", "1") for axis in "CZT")
    planes = math.prod(int(size) if size.isdecimal() else 1 for size in sizes)
    return max(planes // first.samplesperpixel, int(imagej.get("images", 1)))


def _ome_mpp(image: Any) -> tuple[float, float] | None:
    with contextlib.suppress(KeyError, ValueError):
        attributes = {} if image is None else image.attrib
        x, y = (
            float(attributes[f"PhysicalSize{axis}"])
            * _um(attributes.get(f"PhysicalSize{axis}Unit", "um"))
            for axis in "XY"
        )
        return x, y
    return None


def _imagej_mpp(imagej: Mapping[str, Any], first: Any) -> tuple[float, float] | None:
    with contextlib.suppress(KeyError, ValueError, TypeError, ZeroDivisionError, AttributeError):
        return _per_px(first, _um(imagej["unit"]))
    return None


def _tag_mpp(first: Any) -> tuple[float, float] | None:
    with contextlib.suppress(KeyError, ValueError, TypeError, ZeroDivisionError, AttributeError):
        return _per_px(first, UM_PER_UNIT[int(first.tags.valueof("ResolutionUnit", 2))])
    return None


def _per_px(page: Any, um: float) -> tuple[float, float]:
    """Return microns per px along x and y; ``um`` is the number of microns in the page's unit."""
    x, y = (
        um * denominator / numerator
        for numerator, denominator in (
            page.tags["XResolution"].value,
            page.tags["YResolution"].value,
        )
    )
    return x, y


def _um(unit: str) -> float:
    """Return the length of a unit in microns; raise KeyError if the unit is unknown."""
    for micro in ("µ", "μ", "\\u00B5"):  # micro sign, Greek mu, ImageJ's escaped micro sign
        unit = unit.replace(micro, "u")
    return _UM[unit]
