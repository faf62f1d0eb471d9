"""Manifests: CSV files of slides, with the columns slide, patient, mpp, mask and annotations."""

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_idc.core.constants import POSSIBLE_MPP
from wsi_idc.core.csv_table import read_csv_table
from wsi_idc.core.errors import DataError
from wsi_idc.core.files import safe_filename

_COLUMNS = ("slide", "patient", "mpp", "mask", "annotations")
_ALIASES = {"wsi": "slide"}


@dataclass(frozen=True)
class ManifestRow:
    """One slide of a manifest.

    Attributes:
        slide: Slide file.
        patient: Patient id of the slide.
        mpp: Microns per level-0 px; None means the value that the slide file states.
        mask: Mask file of the slide; None means that the slide is segmented.
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
        """Name of the slide file without its suffix; a DataError if it is no safe file name."""
        return safe_filename(self.slide.stem, kind="slide name")

    @property
    def map_name(self) -> str:
        """Name of the slide's map: PATIENT, or PATIENT/SLIDE if the patient has other slides."""
        return self.patient if self.is_only else f"{self.patient}/{self.slide_name}"


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest, one row per slide.

    The column ``slide`` (or ``wsi``) has paths relative to the folder of the manifest, as have
    ``mask`` and ``annotations``. All columns but ``slide`` may be missing, and their cells may be
    empty. The default patient is the name of the slide file without its suffix. The default mpp is
    the value that the slide file states. Other columns are ignored. A patient may have several
    slides of different names.

    Raises:
        DataError: A row or column is invalid; the error message names the row or column.
    """
    rows: list[ManifestRow] = []
    line_of: dict[tuple[str, ...], int] = {}
    header, lines = read_csv_table(path, needs="slide", aliases=_ALIASES)
    _check_columns(path, header)
    for line, cells in lines:
        row = _parse(cells, folder=path.parent, where=f"{path}, line {line}")
        file, name = (os.path.realpath(row.slide),), (row.patient, row.slide.stem)
        if file in line_of:
            reason = f"{row.slide} is also on line {line_of[file]}; list each slide once"
            raise DataError(f"{path}, line {line}: {reason}")
        if name in line_of:
            raise DataError(
                f"{path}, line {line}: patient {row.patient!r} also has a slide {row.slide.stem!r} "
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
            line = line_of[row.patient, row.slide.stem]
            raise DataError(f"{path}, line {line}: {error}") from None
    return rows


def rows_from_files(slides: Sequence[Path]) -> list[ManifestRow]:
    """Return a manifest row for each slide file; the file name without suffix is the patient."""
    rows: dict[str, ManifestRow] = {}
    for path in slides:
        try:
            patient = safe_filename(path.stem)
        except DataError as error:
            raise DataError(f"{error}, or name it in a --manifest") from None
        if patient in rows:
            raise DataError(
                f"the maps of {rows[patient].slide} and {path} would both be {patient}.h5; give "
                "each slide a different patient in a --manifest"
            )
        rows[patient] = ManifestRow(path, patient, None)
    return list(rows.values())


def _check_columns(path: Path, header: list[str]) -> None:
    """Raise DataError if an unknown column is probably a missing column with a wrong spelling."""
    for column in set(header).difference(_COLUMNS):
        missing = set(_COLUMNS).difference(header)
        if similar := difflib.get_close_matches(column, missing, n=1):
            raise DataError(f"{path}: unknown column {column!r}; did you mean {similar[0]!r}?")


def _parse(cells: dict[str, str], *, folder: Path, where: str) -> ManifestRow:
    slide, patient, mpp, mask, annotations = (cells.get(column, "") for column in _COLUMNS)
    for column, name in (("slide", slide or "\0"), ("mask", mask), ("annotations", annotations)):
        if "\0" in name:
            raise DataError(f"{where}: the column {column} names no file")
    try:
        patient = safe_filename(patient or Path(slide).stem)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    low, high = POSSIBLE_MPP
    try:
        row = ManifestRow(
            folder / slide,
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
