"""Microns per pixel of a slide: the value in the file, or the value that the user gives."""

import logging
from pathlib import Path

from wsi_idc.core.constants import POSSIBLE_MPP
from wsi_idc.core.errors import SlideError

logger = logging.getLogger(__name__)

_MIN_MPP, _MAX_MPP = POSSIBLE_MPP
# Maximum relative difference between the width and the height of a px.
_MAX_STRETCH = 0.03
# If --mpp differs from the file's mpp by more than this fraction, ``mpp_source`` names both.
_MAX_CONTRADICTION = 0.1
_CAUTION_FACTOR = 1.5  # a map or pack has a caution if the two mpp differ by more than this factor
_GIVEN, _BUT = "given", "given, but the file states "


def check_given_mpp(path: Path, mpp: float | None) -> None:
    """Raise SlideError if the microns per pixel that the user gives are impossible."""
    if mpp is not None and not _MIN_MPP <= mpp <= _MAX_MPP:
        raise SlideError(f"{path}: {mpp:g} um/px is impossible; give {_MIN_MPP:g} to {_MAX_MPP:g}")


def choose_mpp(
    path: Path, file_mpp: tuple[float, float] | None, *, given: float | None
) -> tuple[float, str]:
    """Return the microns per level-0 px, and their origin.

    Args:
        path: Slide file.
        file_mpp: Width and height of a px in um, from the file; None if the file has no values.
        given: Microns per px that the user gives; None if the user gives none.

    Returns:
        The microns per px, and their origin: "file", "given", or a text such as "given, but the
        file states 0.5".

    Raises:
        SlideError: There is no value, or the file's value is impossible.
    """
    if given is not None:
        if file_mpp is not None and abs(file_mpp[0] / given - 1) > _MAX_CONTRADICTION:
            logger.warning("%s: %g um/px is given; the file states %g", path, given, file_mpp[0])
            return given, f"{_BUT}{file_mpp[0]:g}"
        return given, _GIVEN
    if file_mpp is None:
        raise SlideError(f"{path}: the file does not state its microns per pixel; give --mpp")
    x, y = file_mpp
    if not all(_MIN_MPP <= value <= _MAX_MPP for value in file_mpp):
        raise SlideError(
            f"{path}: the file states {x:g} x {y:g} um per pixel, which is impossible; give --mpp"
        )
    if abs(x / y - 1) > _MAX_STRETCH:
        raise SlideError(
            f"{path}: its pixels are not square ({x:g} x {y:g} um); give --mpp if these values "
            "are wrong, else resample the slide"
        )
    return (x + y) / 2, "file"


def mpp_caution(mpp: float, mpp_source: str) -> str:
    """Return a caution if the given microns per px strongly contradict the slide file, else "".

    Args:
        mpp: Microns per level-0 px.
        mpp_source: Origin of ``mpp``, from ``choose_mpp``.
    """
    try:
        stated = float(mpp_source.removeprefix(_BUT))
    except ValueError:  # the source names no contradiction
        return ""
    if not stated > 0 or 1 / _CAUTION_FACTOR <= mpp / stated <= _CAUTION_FACTOR:
        return ""
    return f"read at {mpp:g} um/px, but the slide file states {stated:g}"
