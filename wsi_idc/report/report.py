"""``wsi-idc report``: a page for each map, the page and the table of the cohort."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.files import ensure_writable, write_text
from wsi_idc.core.progress import progress
from wsi_idc.maps.cohort import Cohort, check_tables
from wsi_idc.maps.layers import crop_to_patches
from wsi_idc.maps.map_reader import read_image, read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.html import grid_uri, page_template, thumbnail_uri
from wsi_idc.plotting.raster import color_table
from wsi_idc.plotting.style import COLORMAPS
from wsi_idc.report.layers import PALETTES, PageLayer, crop_image
from wsi_idc.report.patient_page import patient_page

INDEX_HTML = "index.html"
_THUMBNAIL_PX = 260
# Titles that identify pages of a report, and the part of a file that holds the title.
_TITLE, _HEAD_CHARS = "<title>Patients: wsi-idc</title>", 2000
_PATIENT_TITLE = "<title>Patient [^<]*: wsi-idc</title>"
# Sort keys of the cards: column, name on the page, whether the largest comes first. The first key
# is the initial order.
SORTS = (
    ("idc_fraction", "IDC fraction", True),
    ("auc", "AUC", False),
    ("mean_uncertainty", "uncertainty", True),
    ("patches", "patches", True),
    ("patient", "id", False),
)


@dataclass
class Report:
    """Files of a report.

    Attributes:
        pages: Patient to page.
        index: Page of the cohort.
        csv, hdf5: Table of the cohort.
        failed: Map file to the reason why it has no page.
    """

    pages: dict[str, Path] = field(default_factory=dict)
    index: Path | None = None
    csv: Path | None = None
    hdf5: Path | None = None
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """Card of a patient.

    Attributes:
        row: Row of the map in the table of the cohort.
        tissue: Thumbnail as a data URI; None if the map has no image.
        probability: Probability map as a data URI, one px a cell.
        rows, cols: Shape of both in cells.
    """

    row: Mapping[str, Any]
    tissue: str | None
    probability: str
    rows: int
    cols: int

    @property
    def link(self) -> str:
        """Address of the patient's page relative to the cohort's page."""
        return quote(f"{self.row['patient']}.html", safe="")


def build_report(
    maps: Sequence[Path], out: Path, *, tables: Path, threshold: float | None = None
) -> Report:
    """Write the pages of maps into the folder ``out`` and their table into ``tables``.

    A map that fails is set aside with the reason, which the cohort's page shows as well.

    Args:
        maps: Map files.
        out: Folder of ``PATIENT.html`` and ``index.html``.
        tables: Folder of ``cohort.csv`` and ``cohort.h5``.
        threshold: Probability from which a patch is called IDC; None takes each map's own.

    Raises:
        MapError: No map can be used.
        WsiIdcError: ``out`` cannot be written to, or holds other files of these names.
    """
    index = out / INDEX_HTML
    marks = (INDEX_HTML,) if _has_title(index, _TITLE) else ()
    ensure_writable(out, writes=(INDEX_HTML,), marks=marks)
    check_tables(tables)
    report, cohort = Report(), Cohort()
    cards: list[Card] = []
    with progress(len(maps), what="reporting", unit="map") as bar:
        for path in maps:
            try:
                cards.append(_add(path, out, cohort, report, threshold))
            except (WsiIdcError, OSError) as error:
                report.failed[path] = str(error)
            bar.update(1)
    if not cards:
        first = next(iter(report.failed.values()), "no map given")
        raise MapError(f"none of {len(maps)} maps can be used: {first}")
    failed = {str(path): reason for path, reason in report.failed.items()}
    report.csv, report.hdf5 = cohort.write(tables)
    report.index = index
    write_text(index, cohort_page(cards, failed))
    return report


def _add(path: Path, out: Path, cohort: Cohort, report: Report, threshold: float | None) -> Card:
    patient_map, image = read_map(path), read_image(path)
    patient = patient_map.patient
    page = out / f"{patient}.html"
    if page.name.lower() == INDEX_HTML:
        raise MapError(
            f"{path}: the page of patient {patient} would replace the cohort's; rename it"
        )
    if page.exists() and not _has_title(page, _PATIENT_TITLE):
        raise MapError(f"{page} is of something else and would be lost; give another --out")
    cohort.add(path, patient_map, threshold=threshold)
    row = cohort.rows[patient]
    try:
        write_text(page, patient_page(patient_map, image, row))
        card = card_of(patient_map, image, row)
    except BaseException:
        cohort.drop(patient)
        raise
    report.pages[patient] = page
    return card


def card_of(
    patient_map: PatientMap, image: NDArray[np.uint8] | None, row: Mapping[str, Any]
) -> Card:
    """Return the card of a patient; the arguments are those of ``patient_page``."""
    tissue = None
    if image is not None:
        tissue = thumbnail_uri(crop_image(image, patient_map), _THUMBNAIL_PX)
    elif patient_map.slide is not None:
        tissue = thumbnail_uri(patient_map.slide.thumbnail, _THUMBNAIL_PX)
    cropped = crop_to_patches(patient_map)
    probability = grid_uri(cropped.probability_grid(), color_table(COLORMAPS["probability"]))
    return Card(row, tissue, probability, *cropped.shape)


def cohort_page(cards: Sequence[Card], failed: Mapping[str, str]) -> str:
    """Return the HTML of the cohort's page.

    Args:
        cards: Cards of the patients.
        failed: Map file to the reason why it has no card.
    """
    ordered = sorted(cards, key=lambda card: -card.row["idc_fraction"])
    sorts = [sort for sort in SORTS if any(not _is_unknown(card.row[sort[0]]) for card in cards)]
    return page_template("report/templates/index.html").render(
        cards=ordered,
        failed=failed,
        sorts=sorts,
        totals=_totals([card.row for card in cards]),
        scale=PageLayer("probability", "Probability", palette=tuple(PALETTES["probability"])),
    )


def _has_title(path: Path, title: str) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return re.search(title, file.read(_HEAD_CHARS)) is not None
    except (OSError, ValueError):
        return False


def _is_unknown(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    totals = {
        "patients": f"{len(rows):,}",
        "patches": f"{sum(row['patches'] for row in rows):,}",
        "mm² of tissue": f"{sum(row['area_mm2'] for row in rows):,.0f}",
        "mm² called IDC": f"{sum(row['idc_area_mm2'] for row in rows):,.0f}",
    }
    # Metrics of patients that the model was trained on are too good.
    unseen = [row for row in rows if row["role"] != "train"]
    note = "" if len(unseen) == len(rows) else " without train patients"
    for name, column in (("median AUC", "auc"), ("median Dice", "dice")):
        known = [row[column] for row in unseen if not _is_unknown(row[column])]
        if known:
            totals[name + note] = f"{float(np.median(known)):.3f}"
    return totals
