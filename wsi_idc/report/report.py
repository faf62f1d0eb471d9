"""Write a page for each map, and the page and the table of the cohort."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.files import ensure_writable, write_text
from wsi_idc.core.progress import progress
from wsi_idc.maps.cohort import Cohort, check_tables
from wsi_idc.maps.map_reader import read_map
from wsi_idc.maps.small_image import read_small_image
from wsi_idc.plotting.html import MAX_SIDE_PX
from wsi_idc.report.cohort_page import (
    PATIENT_TITLE,
    TITLE,
    Card,
    card_of,
    cohort_page,
    has_title,
    patient_card,
    slides_page,
)
from wsi_idc.report.patient_page import patient_page

INDEX_HTML = "index.html"


@dataclass
class Report:
    """Files that ``build_report`` wrote.

    Attributes:
        pages: For each map name, PATIENT or PATIENT/SLIDE, the page. A patient with several slides
            also has a page that lists the slides.
        index: Page of the cohort.
        csv, hdf5: Table of the cohort, as CSV file and as HDF5 file.
        patients: Table of the patients.
        failed: For each map file without a page, and each patient without a list of slides, the
            reason.
    """

    pages: dict[str, Path] = field(default_factory=dict)
    index: Path | None = None
    csv: Path | None = None
    hdf5: Path | None = None
    patients: Path | None = None
    failed: dict[Path, str] = field(default_factory=dict)


def build_report(
    maps: Sequence[Path], out: Path, *, tables: Path, threshold: float | None = None
) -> Report:
    """Write the pages of maps into the folder ``out``, and the cohort table into ``tables``.

    A map that fails does not stop the report: the page of the cohort shows the reason.

    Args:
        maps: Map files.
        out: Folder of ``PATIENT.html``, ``PATIENT/SLIDE.html`` and ``index.html``.
        tables: Folder of ``cohort.csv``, ``cohort.h5`` and ``patients.csv``.
        threshold: Lowest probability of a patch called IDC; None means each map's threshold.

    Raises:
        MapError: No map can be used.
        WsiIdcError: ``out`` is not writable, or another program wrote files of these names.
    """
    index = out / INDEX_HTML
    marks = (INDEX_HTML,) if has_title(index, TITLE) else ()
    ensure_writable(out, writes=(INDEX_HTML,), marks=marks)
    check_tables(tables)
    report, cohort = Report(), Cohort()
    cards: dict[str, list[Card]] = {}  # for each patient, the cards of the maps
    with progress(len(maps), what="reporting", unit="map") as bar:
        for path in maps:
            try:
                card = _add(path, out, cohort, report, threshold)
                cards.setdefault(card.row["patient"], []).append(card)
            except (WsiIdcError, OSError) as error:
                report.failed[path] = str(error)
            bar.update(1)
    if not cards:
        first = next(iter(report.failed.values()), "no map given")
        raise MapError(f"none of {len(maps)} maps can be used: {first}")
    patients = [_add_patient(group, out, cohort, report) for group in cards.values()]
    failed = {str(path): reason for path, reason in report.failed.items()}
    report.csv, report.hdf5, report.patients = cohort.write(tables)
    report.index = index
    write_text(index, cohort_page(patients, failed))
    return report


def _add(path: Path, out: Path, cohort: Cohort, report: Report, threshold: float | None) -> Card:
    patient_map = read_map(path)
    image = read_small_image(path, MAX_SIDE_PX)
    patient, name = patient_map.patient, patient_map.map_name
    page, patient_page_path = out / f"{name}.html", out / f"{patient}.html"
    if patient_page_path.name.lower() == INDEX_HTML:
        raise MapError(
            f"{path}: the page of patient {patient} would replace the cohort page; change the id"
        )
    for file in (page, patient_page_path):
        if file.exists() and not has_title(file, PATIENT_TITLE):
            raise MapError(f"{file} exists and was not written by this command; give another --out")
    cohort.add(path, patient_map, threshold=threshold)
    row = cohort.rows[name]
    try:
        write_text(page, patient_page(patient_map, image, row))
        card = card_of(patient_map, image, row)
    except BaseException:
        cohort.drop(name)
        raise
    report.pages[name] = page
    return card


def _add_patient(cards: Sequence[Card], out: Path, cohort: Cohort, report: Report) -> Card:
    """Return the card of a patient; write the page that lists the slides, if there are several."""
    patient = cards[0].row["patient"]
    if not cards[0].row["slide"]:
        return cards[0]
    card, page = patient_card(cohort.patient_row(patient), cards), out / f"{patient}.html"
    try:
        write_text(page, slides_page(card))
        report.pages[patient] = page
    except (WsiIdcError, OSError) as error:
        report.failed[page] = str(error)
    return card
