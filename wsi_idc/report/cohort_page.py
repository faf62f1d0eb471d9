"""The cohort's page: every patient as a card, to be sorted and found."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS
from wsi_idc.plotting.html import grid_uri, page_template, thumbnail_uri
from wsi_idc.plotting.raster import color_table
from wsi_idc.report.layers import bounding_box, stitched_in_window, to_bbox_grid
from wsi_idc.report.legend import legend_of_probability

_THUMBNAIL_PX = 260
# By which the page is known again, and what it lies in.
_TITLE, _HEAD_CHARS = "<title>Patients: wsi-idc</title>", 2000
_PATIENTS_TITLE = "<title>Patient [^<]*: wsi-idc</title>"
# What cards can be sorted by: column, what the page calls it, whether the largest comes first.
SORTS = (
    ("idc_fraction", "IDC fraction", True),
    ("auc", "AUC", False),
    ("mean_uncertainty", "uncertainty", True),
    ("patches", "patches", True),
    ("patient", "id", False),
)


@dataclass(frozen=True)
class Card:
    """A patient on the cohort's page.

    Attributes:
        row: The map's row of the table.
        tissue: Thumbnail, a data URI; None where the map has no image.
        probability: Thumbnail, a data URI of one px a cell.
        rows, cols: Shape of both in cells.
    """

    row: Mapping[str, Any]
    tissue: str | None
    probability: str
    rows: int
    cols: int

    @property
    def link(self) -> str:
        """Where the patient's page is, from the cohort's page."""
        return quote(page_name(str(self.row["patient"])), safe="")


def page_name(patient: str) -> str:
    """Return the file name of a patient's page."""
    return f"{patient}.html"


def card_of(content: PatientMap, image: NDArray[np.uint8] | None, row: Mapping[str, Any]) -> Card:
    """Return the card of a patient, from the same as ``patient_page``."""
    window = bounding_box(content)
    tissue = None
    if image is not None:
        tissue = thumbnail_uri(stitched_in_window(image, content), _THUMBNAIL_PX)
    elif content.slide is not None:
        tissue = thumbnail_uri(content.slide.thumbnail, _THUMBNAIL_PX)
    probability = grid_uri(
        to_bbox_grid(content.probability, content, fill=np.nan),
        color_table(COLORMAPS["probability"]),
    )
    return Card(row, tissue, probability, window.rows, window.cols)


def cohort_page(cards: Sequence[Card], failed: Mapping[str, str]) -> str:
    """Return the HTML of the cohort's page.

    Args:
        cards: One a patient.
        failed: Map file to the reason why it is not among them.
    """
    column, _, descending = SORTS[0]
    ordered = sorted(cards, key=lambda card: sort_key(card.row[column], descending=descending))
    sorts = [sort for sort in SORTS if any(not _is_unknown(card.row[sort[0]]) for card in cards)]
    return page_template("report/templates/index.html").render(
        cards=ordered,
        failed=failed,
        sorts=sorts,
        totals=_totals([card.row for card in cards]),
        scale=legend_of_probability(),
    )


def is_cohort_page(path: Path) -> bool:
    """Return whether a file is the cohort's page of an earlier report."""
    return _holds(path, _TITLE)


def is_patient_page(path: Path) -> bool:
    """Return whether a file is a patient's page of an earlier report."""
    return _holds(path, _PATIENTS_TITLE)


def _holds(path: Path, title: str) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return re.search(title, file.read(_HEAD_CHARS)) is not None
    except (OSError, ValueError):
        return False


def sort_key(value: Any, *, descending: bool) -> tuple[bool, Any]:
    """Return a key to sort numbers by, in either direction, unknown ones last."""
    if _is_unknown(value):
        return (True, 0)
    return (False, -value if descending else value)


def _is_unknown(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return names and values of what the page says of the whole cohort."""
    totals = {
        "patients": f"{len(rows):,}",
        "patches": f"{sum(row['patches'] for row in rows):,}",
        "mm² of tissue": f"{sum(row['area_mm2'] for row in rows):,.0f}",
        "mm² called IDC": f"{sum(row['idc_area_mm2'] for row in rows):,.0f}",
    }
    # How well a model does on patients that it was trained on says nothing.
    unseen = [row for row in rows if row["role"] != "train"]
    note = "" if len(unseen) == len(rows) else " without train patients"
    for name, column in (("median AUC", "auc"), ("median Dice", "dice")):
        known = [row[column] for row in unseen if not _is_unknown(row[column])]
        if known:
            totals[name + note] = f"{float(np.median(known)):.3f}"
    return totals
