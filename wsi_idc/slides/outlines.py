"""Outlines with the coordinates of an annotation file, not yet checked or converted to px."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import SlideError

FORMATS = "QuPath GeoJSON, ASAP XML, ImageScope XML or NDPA"
MAX_POINTS = 5_000_000  # about 1 GB of memory while a JSON file is parsed

Ring = NDArray[np.float64]  # shape (N, 2), x and y


@dataclass(frozen=True)
class Outline:
    """One outline with the coordinates of the annotation file.

    Attributes:
        place: Position of the outline in the file, such as "feature 3".
        name: Class in the file; "" if the outline has no class.
        polygons: List of polygons. A polygon is a list of rings: the outer ring, then the holes.
        holes: Rings whose areas are subtracted from all polygons.
    """

    place: str
    name: str
    polygons: list[list[Ring]]
    holes: list[Ring] = field(default_factory=list)


@dataclass
class AnnotationFile:
    """Content of an annotation file.

    Attributes:
        format: "geojson", "asap", "imagescope" or "ndpa".
        outlines: Outlines that have an area.
        skipped: Number of skipped objects of each kind, such as "points and lines".
    """

    format: str
    outlines: list[Outline] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def check_num_points(num: int) -> None:
    """Raise SlideError if ``num`` is too large; the caller adds the file name to the message."""
    if num > MAX_POINTS:
        raise SlideError(
            f"has more than {MAX_POINTS:,} points; simplify the outlines and export them again"
        )
