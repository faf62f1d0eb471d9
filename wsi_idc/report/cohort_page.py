"""Make HTML pages: a cohort page with a card per patient, a patient page with a card per slide."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.maps.cohort import MIXED, num_models
from wsi_idc.maps.layers import crop_to_patches
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS
from wsi_idc.plotting.html import grid_uri, page_template, tissue_uri
from wsi_idc.plotting.raster import color_table
from wsi_idc.report.layers import PageLayer, crop_image, hex_colors

_THUMBNAIL_PX = 260
# On a card, the grid is beside the tissue and not over it, so the colors are opaque.
_OPAQUE_PALETTE = hex_colors(color_table(COLORMAPS["probability"]))
# Titles that identify the pages of a report. The title is in the first ``_HEAD_CHARS`` characters.
TITLE, _HEAD_CHARS = "<title>Patients: wsi-idc</title>", 2000
PATIENT_TITLE = "<title>Patient [^<]*: wsi-idc</title>"
# Sort keys of the cards: column, name on the page, whether the largest value comes first. The page
# initially uses the first key.
SORTS = (
    ("idc_fraction", "IDC fraction", True),
    ("auc", "AUC", False),
    ("mean_uncertainty", "uncertainty", True),
    ("patches", "patches", True),
    ("patient", "id", False),
)


@dataclass(frozen=True)
class Card:
    """Card of a patient on the page of a cohort, or of a slide on the page of its patient.

    Attributes:
        row: Row of the map in the table of the cohort. For a patient with several slides, this is
            the row of the patient in the table of patients.
        tissue: Thumbnail of the tissue as a data URI; None if the map has no image and no slide.
        probability: Picture of the probabilities as a data URI, one px per cell.
        rows, cols: Number of rows and columns of the grid.
        slides: Cards of the slides of a patient with several slides.
    """

    row: Mapping[str, Any]
    tissue: str | None
    probability: str
    rows: int
    cols: int
    slides: Sequence["Card"] = ()

    @property
    def name(self) -> str:
        """Name of the slide if the patient has several slides, else the patient id."""
        return str(self.row.get("slide") or self.row["patient"])

    @property
    def link(self) -> str:
        """Address of the page of the patient or slide, relative to the page of the cohort."""
        name = quote(f"{self.name}.html", safe="")
        return f"{quote(self.row['patient'], safe='')}/{name}" if self.row.get("slide") else name


def card_of(
    patient_map: PatientMap, image: NDArray[np.uint8] | None, row: Mapping[str, Any]
) -> Card:
    """Return the card of a patient or slide. ``patient_page`` has the same arguments."""
    tissue = None
    if image is not None:
        tissue, _ = tissue_uri(crop_image(image, patient_map), _THUMBNAIL_PX)
    elif patient_map.slide is not None:
        tissue, _ = tissue_uri(patient_map.slide.thumbnail, _THUMBNAIL_PX)
    cropped = crop_to_patches(patient_map)
    probability = grid_uri(cropped.probability_grid(), color_table(COLORMAPS["probability"]))
    return Card(row, tissue, probability, *cropped.shape)


def patient_card(row: Mapping[str, Any], slides: Sequence[Card]) -> Card:
    """Return the card of a patient with several slides. The pictures show the slide with most IDC.

    Args:
        row: Row of the patient in the table of patients.
        slides: Cards of the slides.
    """
    shown = max(slides, key=lambda card: card.row["idc_area_mm2"])
    return replace(shown, row=row, slides=slides)


def cohort_page(cards: Sequence[Card], failed: Mapping[str, str]) -> str:
    """Return the HTML of a cohort's page; ``failed`` has a reason for each map without a card."""
    return _cards_page("index", cards, cards, kind="patients", id_name="patient id", failed=failed)


def slides_page(card: Card) -> str:
    """Return the HTML of the page of a patient with several slides."""
    return _cards_page("slides", card.slides, [card], kind="slides", id_name="slide name")


def _cards_page(
    template: str,
    cards: Sequence[Card],
    patients: Sequence[Card],
    *,
    kind: str,
    id_name: str,
    failed: Mapping[str, str] | None = None,
) -> str:
    ordered = sorted(cards, key=lambda card: -card.row["idc_fraction"])
    maps = [slide.row for card in cards for slide in card.slides or (card,)]
    num = num_models(pd.DataFrame(maps))
    sorts = [sort for sort in SORTS if any(pd.notna(card.row[sort[0]]) for card in cards)]
    totals = {kind: f"{len(cards):,}"}
    totals |= _totals([card.row for card in patients], has_medians=num == 1 and kind == "patients")
    return page_template(f"report/templates/{template}.html").render(
        patient=patients[0].row["patient"],
        id_name=id_name,
        cards=ordered,
        failed=failed or {},
        sorts=sorts,
        totals=totals,
        mixed=MIXED % num if num > 1 else "",
        scale=PageLayer("probability", "Probability", palette=_OPAQUE_PALETTE),
    )


def has_title(path: Path, title: str) -> bool:
    """Return whether the regular expression ``title`` matches in the start of an HTML file."""
    try:
        with path.open(encoding="utf-8") as file:
            return re.search(title, file.read(_HEAD_CHARS)) is not None
    except (OSError, ValueError):
        return False


def _totals(rows: Sequence[Mapping[str, Any]], *, has_medians: bool) -> dict[str, str]:
    totals = {
        "patches": f"{sum(row['patches'] for row in rows):,}",
        "mm² of tissue": f"{sum(row['area_mm2'] for row in rows):,.1f}",
        "mm² called IDC": f"{sum(row['idc_area_mm2'] for row in rows):,.1f}",
    }
    # Patients on which the model was trained are left out: their metrics are too good.
    unseen = [row for row in rows if row["role"] != "train"]
    note = "" if len(unseen) == len(rows) else " without train patients"
    for name, column in (("median AUC", "auc"), ("median Dice", "dice")):
        known = [row[column] for row in unseen if pd.notna(row[column])]
        if known and has_medians:  # there is no common median of different models
            totals[name + note] = f"{float(np.median(known)):.3f}"
    return totals
