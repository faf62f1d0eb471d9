"""Manifests: CSV files of slides, with the columns slide, patient, mpp, mask and annotations."""

import contextlib
import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_idc.core.constants import POSSIBLE_MPP
from wsi_idc.core.csv_table import read_csv_table
from wsi_idc.core.errors import DataError
from wsi_idc.core.files import safe_filename
from wsi_idc.core.text import shorten_list

logger = logging.getLogger(__name__)

_COLUMNS = ("slide", "patient", "mpp", "mask", "annotations")
_ALIASES = {"wsi": "slide"}
_DICOM = ".dcm"
_DICOM_HEAD_BYTES = 2**16  # the attributes of the series are among the first ones of a file
_DICOM_SLIDE = b"1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class of whole-slide images
# StudyInstanceUID and SeriesInstanceUID; only outside nested sequences, they follow each other.
_DICOM_SERIES = re.compile(
    rb"\x20\x00\x0d\x00.{4}[0-9.]+\x00?\x20\x00\x0e\x00.{4}([0-9.]+)", re.DOTALL
)
# Suffixes of the slides that are searched for in folders: the suffixes that OpenSlide supports.
FOLDER_SUFFIXES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", _DICOM),
    *(".tif", ".tiff"),
)


@dataclass(frozen=True)
class ManifestRow:
    """One slide of a manifest.

    Attributes:
        slide: Slide file.
        patient: Patient id of the slide.
        mpp: Microns per level-0 px; None means the value that the slide file states.
        mask: Mask file of the slide; None means that the tissue is found by segmentation.
        annotations: File with the annotations of the slide, if there is one.
        is_only: Whether the manifest has no other slide of the patient.
    """

    slide: Path
    patient: str
    mpp: float | None
    mask: Path | None = None
    annotations: Path | None = None
    is_only: bool = True

    @property
    def slide_name(self) -> str:
        """Name of the slide file without its suffix; an unsafe file name raises DataError."""
        return safe_filename(slide_stem(self.slide), kind="slide name")

    @property
    def map_name(self) -> str:
        """Name of the slide's map: PATIENT, or PATIENT/SLIDE if the patient has other slides."""
        return self.patient if self.is_only else f"{self.patient}/{self.slide_name}"


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest, one row per slide.

    The columns ``slide`` (or ``wsi``), ``mask`` and ``annotations`` have paths relative to the
    folder of the manifest. Only the column ``slide`` is required; cells of other columns may be
    empty. The default patient is the name of the slide file without its suffix. The default mpp is
    the value that the slide file states. The column ``slide`` may name a folder with one slide,
    such as a folder of DICOM files. Columns with other names are ignored. A patient may have
    several slides with different names.

    Raises:
        DataError: A row or column is invalid; the error message names the row or column.
    """
    rows: list[ManifestRow] = []
    line_of: dict[tuple[str, ...], int] = {}
    header, lines = read_csv_table(path, needs="slide", aliases=_ALIASES)
    _check_columns(path, header)
    for line, cells in lines:
        row = _parse(cells, folder=path.parent, where=f"{path}, line {line}")
        file, name = (os.path.realpath(row.slide),), (row.patient, slide_stem(row.slide))
        if file in line_of:
            reason = f"{row.slide} is also on line {line_of[file]}; list each slide once"
            raise DataError(f"{path}, line {line}: {reason}")
        if name in line_of:
            raise DataError(
                f"{path}, line {line}: patient {row.patient!r} also has a slide {name[1]!r} "
                f"on line {line_of[name]}; rename one of the slides, or give them different ids "
                "in the column patient"
            )
        line_of |= {file: line, name: line}
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: lists no slide")
    num_slides = Counter(row.patient for row in rows)
    rows = [replace(row, is_only=num_slides[row.patient] == 1) for row in rows]
    for row in rows:
        try:
            _ = row.map_name
        except DataError as error:
            line = line_of[row.patient, slide_stem(row.slide)]
            raise DataError(f"{path}, line {line}: {error}") from None
    return rows


def find_slides(paths: Iterable[Path]) -> list[Path]:
    """Replace each folder by the slide files in it and its subfolders, sorted by path.

    A folder of DICOM files is one slide, so only its first file is returned. If the folder has
    other slides, they are named in the log. PNG and JPEG files in folders are left out: most are
    masks and thumbnails.

    Raises:
        DataError: A folder has no slide.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(filter(_is_slide_name, path.rglob("*"))) if _is_folder(path) else [path]
        if not found:
            raise DataError(
                f"{path}: no slides in this folder; slides are files that end in "
                f"{', '.join(FOLDER_SUFFIXES)}"
            )
        files += found
    # The key of a slide is the folder of a DICOM file, else the file.
    slides: dict[Path, list[Path]] = {}
    for file in files:
        key = file.parent if file.suffix.lower() == _DICOM else file
        slides.setdefault(key, []).append(file)
    for key, parts in slides.items():
        if others := _other_dicom_slides(parts):
            logger.warning(
                "%s has DICOM files of %d slides; only the slide of %s is used, not %s: give each "
                "slide a folder of its own",
                *(key, 1 + len(others), parts[0].name, shorten_list(p.name for p in others)),
            )
    return [first for first, *_ in slides.values()]


def _other_dicom_slides(files: Sequence[Path]) -> list[Path]:
    """Return the first file of each slide that is not the slide of ``files[0]``."""
    if len(files) < 2:
        return []
    series = {_dicom_series(file): file for file in reversed(files)}
    return sorted(file for uid, file in series.items() if uid and file != files[0])


def _dicom_series(path: Path) -> bytes | None:
    """Return the SeriesInstanceUID of a DICOM file; None if the file is not of a slide."""
    try:
        with path.open("rb") as file:
            head = file.read(_DICOM_HEAD_BYTES)
    except OSError:
        return None  # opening the slide reports the error
    match = _DICOM_SERIES.search(head) if _DICOM_SLIDE in head else None
    return match[1] if match else None


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):  # for example, the name is too long
        return path.is_dir()
    return False


def _is_slide_name(path: Path) -> bool:
    is_hidden = path.name.startswith(".")  # macOS writes ._S1.svs beside S1.svs
    return path.suffix.lower() in FOLDER_SUFFIXES and not is_hidden and path.is_file()


def slide_stem(path: Path) -> str:
    """Return the name of a slide file without suffix; for a DICOM file, the name of its folder."""
    return path.resolve().parent.name if path.suffix.lower() == _DICOM else path.stem


def rows_from_files(slides: Sequence[Path]) -> list[ManifestRow]:
    """Return a manifest row for each slide; the patient id is the ``slide_stem`` of the file.

    Args:
        slides: Slide files and folders; ``find_slides`` replaces each folder by its slide files.
    """
    rows: dict[str, ManifestRow] = {}
    for path in find_slides(slides):
        try:
            patient = safe_filename(slide_stem(path))
        except DataError as error:
            raise DataError(f"{error}, or give another id in a --manifest") from None
        if patient in rows:
            raise DataError(
                f"the maps of {rows[patient].slide} and {path} would both be {patient}.h5; give "
                "each slide a different patient in a --manifest"
            )
        rows[patient] = ManifestRow(path, patient, None)
    return list(rows.values())


def slide_rows(path: Path) -> list[ManifestRow]:
    """Return the slides of ``path``: a manifest (.csv, .tsv, .txt), a folder, or a slide file."""
    is_manifest = path.suffix.lower() in (".csv", ".tsv", ".txt")
    return read_manifest(path) if is_manifest else rows_from_files([path])


def _check_columns(path: Path, header: list[str]) -> None:
    """Raise DataError if an unknown column is probably a misspelling of a missing column."""
    for column in set(header).difference(_COLUMNS):
        missing = set(_COLUMNS).difference(header)
        if similar := difflib.get_close_matches(column, missing, n=1):
            raise DataError(f"{path}: unknown column {column!r}; did you mean {similar[0]!r}?")


def _parse(cells: dict[str, str], *, folder: Path, where: str) -> ManifestRow:
    slide, patient, mpp, mask, annotations = (cells.get(column, "") for column in _COLUMNS)
    for column, name in (("slide", slide or "\0"), ("mask", mask), ("annotations", annotations)):
        if "\0" in name:
            raise DataError(f"{where}: the column {column} has no file name")
    try:
        path = folder / slide
        if _is_folder(path):
            path = _only_slide(path)
        patient = safe_filename(patient or slide_stem(path))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    low, high = POSSIBLE_MPP
    try:
        row = ManifestRow(
            path,
            patient,
            float(mpp) if mpp else None,
            folder / mask if mask else None,
            folder / annotations if annotations else None,
        )
    except ValueError:
        raise DataError(f"{where}: mpp {mpp!r} is not a number") from None
    if row.mpp is not None and not low <= row.mpp <= high:
        raise DataError(f"{where}: mpp {mpp!r} is impossible; give {low:g} to {high:g} um")
    return row


def _only_slide(folder: Path) -> Path:
    """Return the only slide of a folder; raise DataError if the folder has several."""
    first, *others = find_slides([folder])
    if others:
        raise DataError(f"{folder} has {len(others) + 1} slides; give each slide its own row")
    return first
