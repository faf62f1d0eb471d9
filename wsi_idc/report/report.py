"""Write a page for each map, and the page and the table of the cohort."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bokeh
from bokeh.resources import Resources
from markupsafe import escape

import wsi_idc
from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.files import ensure_writable, write_text
from wsi_idc.core.progress import progress
from wsi_idc.maps import map_reader
from wsi_idc.maps.cohort import Cohort, check_tables, summarize
from wsi_idc.maps.map_reader import read_map, read_map_without_cams
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.small_image import read_small_image
from wsi_idc.plotting.html import MAX_SIDE_PX
from wsi_idc.plotting.page_links import link_patients, relative_link
from wsi_idc.report.cohort_page import (
    PATIENT_TITLE,
    TITLE,
    Card,
    card_of,
    cohort_page,
    has_title,
    patient_card,
    row_key,
    slides_page,
)
from wsi_idc.report.evaluations import find_evaluations
from wsi_idc.report.patient_page import CARD_ID, DIGEST_NAME, PageContext, patient_page

INDEX_HTML = "index.html"
_CARD_FIELDS = ("tissue", "probability", "rows", "cols")


@dataclass
class Report:
    """Files that ``build_report`` wrote.

    Attributes:
        pages: Page of each map; the keys are the names of the maps: PATIENT or PATIENT/SLIDE. If a
            patient has several slides, the page PATIENT lists the slides.
        index: Page of the cohort.
        csv, hdf5: Table of the cohort, as CSV file and as HDF5 file.
        patients: Table of the patients.
        failed: Reasons of errors. A key is a map file without a page, or another page that cannot
            be written: a page that lists slides, or the page of an evaluation.
        stale: Pages of earlier reports in the folder, for maps that are not in this report. These
            pages are kept, because this report may have only some of the maps.
    """

    pages: dict[str, Path] = field(default_factory=dict)
    index: Path | None = None
    csv: Path | None = None
    hdf5: Path | None = None
    patients: Path | None = None
    failed: dict[Path, str] = field(default_factory=dict)
    stale: list[Path] = field(default_factory=list)


def build_report(
    maps: Sequence[Path],
    out: Path,
    *,
    tables: Path,
    threshold: float | None = None,
    exclude_flagged: bool = False,
    single_file: bool = False,
) -> Report:
    """Write the pages of maps into the folder ``out``, and the cohort table into ``tables``.

    If a map has not changed, the old page is kept. If the page of a map cannot be made, the report
    continues, and the page of the cohort shows the reason.

    Args:
        maps: Map files.
        out: Folder of ``PATIENT.html``, ``PATIENT/SLIDE.html`` and ``index.html``.
        tables: Folder of ``cohort.csv``, ``cohort.h5`` and ``patients.csv``.
        threshold: Lowest probability that is called IDC; None means each map's threshold.
        exclude_flagged: True: areas and regions of all maps leave out flagged patches. False: only
            maps that were made with ``exclude_flagged`` leave them out.
        single_file: True: each page contains the code of bokeh. False: all pages use one file in
            ``out`` with this code.

    Raises:
        MapError: No map can be used.
        WsiIdcError: ``out`` is not writable, or has files of these names from another program.
    """
    index = out / INDEX_HTML
    marks = (INDEX_HTML,) if has_title(index, TITLE) else ()
    ensure_writable(out, writes=(INDEX_HTML,), marks=marks)
    check_tables(tables)
    report, cohort = Report(), Cohort()
    for path in maps:
        try:
            patient_map = read_map_without_cams(path)
            if exclude_flagged:
                patient_map = map_reader.exclude_flagged(path, patient_map)
            _check_page(path, patient_map, out, cohort, threshold)
        except (WsiIdcError, OSError) as error:
            report.failed[path] = str(error)
    script_file = "" if single_file or not cohort.rows else _write_script(out)
    cards: dict[str, list[Card]] = {}  # for each patient, the cards of the maps
    names, evaluations = list(cohort.rows), list(find_evaluations())
    with progress(len(names), what="reporting", unit="map") as bar:
        for previous, name, following in zip(["", *names], names, [*names[1:], ""], strict=False):
            path, row = cohort.paths[name], cohort.rows[name]
            links = [
                (e.path.parent.name, relative_link(e.path, index))
                for e in evaluations
                if e.model == row_key(row)
            ]
            context = PageContext(previous, following, script_file, tuple(links))
            try:
                cards.setdefault(row["patient"], []).append(_make_page(path, out, row, context))
                report.pages[name] = out / f"{name}.html"
            except (WsiIdcError, OSError) as error:
                report.failed[path] = str(error)
                cohort.drop(name)
            bar.update(1)
    if not report.pages:
        first = next(iter(report.failed.values()), "no map given")
        raise MapError(f"none of {len(maps)} maps can be used: {first}")
    patients = [_add_patient(group, out, cohort, report) for group in cards.values() if group]
    for page, model in evaluations:
        if any(row_key(row) == model for row in cohort.rows.values()):
            try:
                link_patients(page, out, model)
            except (OSError, ValueError) as error:
                report.failed[page] = str(error)
    report.stale = _find_stale(out, report.pages.values())
    failed = {str(path): reason for path, reason in report.failed.items()}
    report.csv, report.hdf5, report.patients = cohort.write(tables)
    report.index = index
    write_text(index, cohort_page(patients, failed))
    return report


def _write_script(out: Path) -> str:
    """Write the file with the code of bokeh into ``out`` if it is missing; return its name."""
    resources = Resources(mode="inline", components=["bokeh", "bokeh-widgets"])
    code = "\n".join(resources.js_raw)
    name = f"bokeh-{bokeh.__version__}-{hashlib.sha256(code.encode()).hexdigest()[:8]}.js"
    if not (out / name).exists():
        write_text(out / name, code)
    return name


def _check_page(
    path: Path, patient_map: PatientMap, out: Path, cohort: Cohort, threshold: float | None
) -> None:
    """Add a map to the cohort; raise MapError if its page would replace an unrelated file."""
    patient = patient_map.patient
    page, patient_page_path = out / f"{patient_map.map_name}.html", out / f"{patient}.html"
    if patient_page_path.name.lower() == INDEX_HTML:
        raise MapError(
            f"{path}: the page of patient {patient} would replace the cohort page; change this id"
        )
    for file in (page, patient_page_path):
        if file.exists() and not has_title(file, PATIENT_TITLE):
            raise MapError(f"{file} exists and was not written by this command; give another --out")
    cohort.add(path, summarize(patient_map, threshold=threshold))


def _make_page(path: Path, out: Path, row: Mapping[str, Any], context: PageContext) -> Card:
    """Write the page of a map unless the page is up to date; return the card of the map."""
    name = f"{row['patient']}/{row['slide']}" if row["slide"] else row["patient"]
    page, digest = out / f"{name}.html", _digest(path, row, context)
    if card := _read_card(page, digest, row):
        return card
    patient_map = replace(read_map(path), exclude_flagged=bool(row["excluded_flags"]))
    image = read_small_image(path, MAX_SIDE_PX)
    card = card_of(patient_map, image, row)
    pictures = {field: getattr(card, field) for field in _CARD_FIELDS}
    context = replace(context, digest=digest, card=json.dumps(pictures))
    write_text(page, patient_page(patient_map, image, row, context))
    return card


def _digest(path: Path, row: Mapping[str, Any], context: PageContext) -> str:
    """Return a hash that changes if the map, its row, ``context`` or the code of pages changes."""
    state = path.stat()
    parts = [state.st_size, state.st_mtime_ns, str(dict(row)), str(context), _code_digest()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _code_digest() -> str:
    """Return a hash of the code and the templates of the pages."""
    digest = hashlib.sha256(bokeh.__version__.encode())
    package = Path(wsi_idc.__file__).parent
    for folder in ("report", "plotting", "maps"):
        for file in sorted((package / folder).rglob("*.*")):
            if file.suffix in (".py", ".html", ".css", ".js"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _read_card(page: Path, digest: str, row: Mapping[str, Any]) -> Card | None:
    """Return the card in a page. If the page is missing or has another digest, return None."""
    try:
        text = page.read_text(encoding="utf-8")
        if f'<meta name="{DIGEST_NAME}" content="{digest}">' not in text:
            return None
        start = f'<script type="application/json" id="{CARD_ID}">'
        return Card(row, **json.loads(text.partition(start)[2].partition("</script>")[0]))
    except (OSError, ValueError, TypeError):
        return None


def _find_stale(out: Path, pages: Iterable[Path]) -> list[Path]:
    """Return the pages of patients and slides in the folder ``out`` that are not in ``pages``."""
    others = {*out.glob("*.html"), *out.glob("*/*.html")} - set(pages)
    names = {page: page.relative_to(out).as_posix().removesuffix(".html") for page in others}
    titles = {
        page: f"<title>Patient {escape(name)}: wsi-idc</title>" for page, name in names.items()
    }
    return sorted(page for page, title in titles.items() if has_title(page, re.escape(title)))


def _add_patient(cards: Sequence[Card], out: Path, cohort: Cohort, report: Report) -> Card:
    """Return the card of a patient. If the patient has several slides, write the page of slides."""
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
