"""Write a page for each map, and the page and the table of the cohort."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.files import ensure_writable, write_text
from wsi_idc.core.progress import progress
from wsi_idc.maps.cohort import Cohort, check_tables
from wsi_idc.maps.map_reader import read_image_rows, read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.html import MAX_SIDE_PX
from wsi_idc.plotting.raster import Pixels, downscale
from wsi_idc.report.cohort_page import PATIENT_TITLE, TITLE, Card, card_of, cohort_page, has_title
from wsi_idc.report.patient_page import patient_page

INDEX_HTML = "index.html"


@dataclass
class Report:
    """Files that ``build_report`` wrote.

    Attributes:
        pages: For each patient id, the page of the patient.
        index: Page of the cohort.
        csv, hdf5: Table of the cohort, as CSV file and as HDF5 file.
        patients: Table of the patients.
        failed: For each map file without a page, the reason.
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
        out: Folder of ``PATIENT.html`` and ``index.html``.
        tables: Folder of ``cohort.csv`` and ``cohort.h5``.
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
    report.csv, report.hdf5, report.patients = cohort.write(tables)
    report.index = index
    write_text(index, cohort_page(cards, failed))
    return report


def _read_tissue(path: Path, patient_map: PatientMap) -> Pixels | None:
    """Read the picture of the tissue, at most ``MAX_SIDE_PX`` wide; None without a picture."""
    rows, cols = patient_map.shape
    cell_px = min(patient_map.cell_px, max(1, MAX_SIDE_PX // max(rows, cols)))
    picture = None
    for row, strip in enumerate(read_image_rows(path)):
        if picture is None:
            picture = np.empty((rows, cell_px, cols * cell_px, 3), np.uint8)
        picture[row] = downscale(strip, height=cell_px, width=cols * cell_px)
    return None if picture is None else picture.reshape(rows * cell_px, cols * cell_px, 3)


def _add(path: Path, out: Path, cohort: Cohort, report: Report, threshold: float | None) -> Card:
    patient_map = read_map(path)
    image = _read_tissue(path, patient_map)
    patient = patient_map.patient
    page = out / f"{patient}.html"
    if page.name.lower() == INDEX_HTML:
        raise MapError(
            f"{path}: the page of patient {patient} would replace the cohort page; change the id"
        )
    if page.exists() and not has_title(page, PATIENT_TITLE):
        raise MapError(f"{page} exists and was not written by this command; give another --out")
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
