"""Make HTML pages with cards.

The page of a cohort has one card per patient. The page of a patient with several slides has one
card per slide.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import NO_ROLE
from wsi_idc.core.text import count
from wsi_idc.maps.cohort import MIXED, flag_counts_of, num_models
from wsi_idc.maps.layers import crop_to_patches, flags_in_words
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS
from wsi_idc.plotting.html import grid_uri, page_template, tissue_uri
from wsi_idc.plotting.number_format import area, number, percent
from wsi_idc.plotting.page_links import model_tag
from wsi_idc.plotting.raster import color_table
from wsi_idc.report.layers import PageLayer, crop_image, hex_colors

_THUMBNAIL_PX = 260
# On a card, the grid is beside the tissue and not over it, so the colors are opaque.
_OPAQUE_PALETTE = hex_colors(color_table(COLORMAPS["probability"]))
# Titles that identify the pages of a report. The title is in the first ``_HEAD_CHARS`` characters.
TITLE, _HEAD_CHARS = "<title>Patients: wsi-idc</title>", 2000
PATIENT_TITLE = "<title>Patient [^<]*: wsi-idc</title>"


class Column(NamedTuple):
    """Column of the table of cards; the cards can be sorted by each column.

    Attributes:
        name: Name of the column in the cohort table.
        title: Title of the column on the page.
        format: Function from a value to its text on the page.
        descends: Whether the largest value comes first.
    """

    name: str
    title: str
    format: Callable[[Any], str] = number
    descends: bool = True


# Columns without any value are left out.
COLUMNS = (
    Column("patient", "id", str, descends=False),
    Column("patches", "patches", "{:,}".format),
    Column("area_mm2", "area, mm²", area),
    Column("idc_area_mm2", "called IDC, mm²", area),
    Column("idc_fraction", "called IDC, % of patches", percent),
    Column("auc", "AUC", descends=False),
    Column("dice", "Dice", descends=False),
    Column("mean_uncertainty", "uncertainty"),
    Column("mean_novelty", "novelty"),
    Column("flagged", "flagged", partial(number, digits=0)),
)
SORTED_BY = "idc_fraction"  # column by which the cards are sorted at first


@dataclass(frozen=True)
class Card:
    """Card of a patient on the page of a cohort, or of a slide on the page of its patient.

    Attributes:
        row: Row of the map in the table of the cohort. The card of a patient with several slides
            has the row of the patient in the table of patients.
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
    def role(self) -> str:
        """Role of the patient in the training of the model, such as "test"."""
        return str(self.row["role"]) or NO_ROLE

    @property
    def flagged(self) -> str:
        """Number of patches with each quality flag, as text; empty if the number is unknown."""
        counts = flag_counts_of(self.row)
        are_excluded = bool(self.row["excluded_flags"])
        return flags_in_words(counts, are_excluded=are_excluded) if counts else ""

    @property
    def link(self) -> str:
        """Address of the page of the patient or slide, relative to the page of the cohort."""
        name = quote(f"{self.name}.html", safe="")
        return f"{quote(self.row['patient'], safe='')}/{name}" if self.row.get("slide") else name


def card_of(
    patient_map: PatientMap, image: NDArray[np.uint8] | None, row: Mapping[str, Any]
) -> Card:
    """Return the card of a map.

    Args:
        patient_map: Map of the patient or slide.
        image: Stitched tissue; None if the map has no image.
        row: Row of the map in the cohort table.
    """
    tissue = None
    if image is not None:
        tissue, _ = tissue_uri(crop_image(image, patient_map), _THUMBNAIL_PX, quality=55)
    elif patient_map.slide is not None:
        tissue, _ = tissue_uri(patient_map.slide.thumbnail, _THUMBNAIL_PX, quality=55)
    cropped = crop_to_patches(patient_map)
    probability = grid_uri(cropped.probability_grid(), color_table(COLORMAPS["probability"]))
    return Card(row, tissue, probability, *cropped.shape)


def patient_card(row: Mapping[str, Any], slides: Sequence[Card]) -> Card:
    """Return the card of a patient with several slides; it shows the slide with the most IDC.

    Args:
        row: Row of the patient in the table of patients.
        slides: Cards of the slides.
    """
    shown = max(slides, key=lambda card: card.row["idc_area_mm2"])
    return replace(shown, row=row, slides=slides)


def cohort_page(cards: Sequence[Card], failed: Mapping[str, str]) -> str:
    """Return the HTML of a cohort's page; ``failed`` has a reason for each map without a card."""
    return _cards_page("index", cards, cards, noun="patient", id_name="patient id", failed=failed)


def slides_page(card: Card) -> str:
    """Return the HTML of the page of a patient with several slides."""
    return _cards_page("slides", card.slides, [card], noun="slide", id_name="slide name")


def _cards_page(
    template: str,
    cards: Sequence[Card],
    patients: Sequence[Card],
    *,
    noun: str,
    id_name: str,
    failed: Mapping[str, str] | None = None,
) -> str:
    ordered = sorted(cards, key=lambda card: -card.row[SORTED_BY])
    maps = pd.DataFrame([slide.row for card in cards for slide in card.slides or (card,)])
    num, thresholds = num_models(maps), maps["threshold"].unique()
    roles = Counter(card.role for card in cards)
    totals = [count(len(cards), noun)]
    totals += _totals([card.row for card in patients], has_medians=num == 1 and noun == "patient")
    return page_template(f"report/templates/{template}.html").render(
        patient=patients[0].row["patient"],
        model_tag=model_tag(row_key(patients[0].row)),
        id_name=id_name,
        cards=ordered,
        failed=failed or {},
        columns=[c for c in COLUMNS if any(pd.notna(card.row[c.name]) for card in cards)],
        sorted_by=SORTED_BY,
        roles=sorted(roles.items()),
        totals=[total.partition(" ")[::2] for total in totals],
        excludes_flagged=bool((maps["excluded_flags"] != "").any()),
        threshold=f"{thresholds[0]:.3f}" if len(thresholds) == 1 else "",
        mixed=MIXED % num if num > 1 else "",
        scale=PageLayer("probability", "Probability", palette=_OPAQUE_PALETTE),
    )


def row_key(row: Mapping[str, Any]) -> str:
    """Return the ``model_key`` of a row of the cohort table: the key of the model of its map."""
    return str(row["ensemble"] or row["checkpoint_sha256"])


def has_title(path: Path, title: str) -> bool:
    """Return True if the first part of an HTML file matches the regular expression ``title``."""
    try:
        with path.open(encoding="utf-8") as file:
            return re.search(title, file.read(_HEAD_CHARS)) is not None
    except (OSError, ValueError):
        return False


def _totals(rows: Sequence[Mapping[str, Any]], *, has_medians: bool) -> list[str]:
    """Return the totals and medians of some maps as texts, such as "5 patches"."""
    totals = [
        count(sum(row["patches"] for row in rows), "patch", "patches"),
        f"{area(sum(row['area_mm2'] for row in rows))} mm² of patches",
        f"{area(sum(row['idc_area_mm2'] for row in rows))} mm² called IDC",
    ]
    # Patients on which the model was trained are left out: their metrics are too good.
    unseen = [row for row in rows if row["role"] != "train"]
    note = "" if len(unseen) == len(rows) else " without train patients"
    for name, column in (("median AUC", "auc"), ("median Dice", "dice")):
        known = [row[column] for row in unseen if pd.notna(row[column])]
        if known and has_medians:  # maps of different models have no common median
            totals.append(f"{float(np.median(known)):.3f} {name}{note}")
    return totals
