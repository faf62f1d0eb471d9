"""Read a list of slides: a CSV with the columns slide, patient, mpp."""

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import safe_filename
from wsi_idc.slides.slide import MAX_MPP, MIN_MPP

_COLUMNS = ("slide", "patient", "mpp")


@dataclass(frozen=True)
class ManifestRow:
    """One slide of a list.

    Attributes:
        slide: Its file.
        patient: Id that the map gets.
        mpp: Microns per level-0 px; None takes the file's word.
    """

    slide: Path
    patient: str
    mpp: float | None


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a CSV with a row a slide.

    The column ``slide`` is a path, from the CSV's folder on. ``patient`` may be left out, or a
    cell of it empty: then it is the name of the file without its suffix. So may ``mpp``, for
    files that state it.

    Raises:
        DataError: A row or column makes no sense; the message says which.
    """
    rows: list[ManifestRow] = []
    line_of: dict[str, int] = {}
    for line, cells in _read_lines(path):
        row = _parse(cells, folder=path.parent, where=f"{path}, line {line}")
        if row.patient in line_of:
            raise DataError(
                f"{path}, line {line}: patient {row.patient!r} is that of line "
                f"{line_of[row.patient]} too; a patient has one map, so give each slide an id "
                "of its own in the column patient"
            )
        line_of[row.patient] = line
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: lists no slide")
    return rows


def rows_from_files(slides: Sequence[Path]) -> list[ManifestRow]:
    """Return a manifest row for each slide file, with the name of the file as the patient.

    Raises:
        DataError: Two files have the same name.
    """
    rows: dict[str, ManifestRow] = {}
    for path in slides:
        patient = safe_filename(path.stem)
        if patient in rows:
            raise DataError(
                f"{rows[patient].slide} and {path} would both be {patient}.h5; name them in a "
                "--manifest"
            )
        rows[patient] = ManifestRow(path, patient, None)
    return list(rows.values())


def _read_lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return each row that is not blank: its line, as an editor counts, and its cells."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            header = [column.strip() for column in next(reader, [])]
            _check_columns(path, header)
            lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a CSV with the column slide") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV ({error})") from None
    for line, cells in lines:
        if len(cells) > len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} cells under {len(header)} columns; quote a "
                "name that has a comma"
            )
    # A row may end early: what is left out is empty.
    return [(line, dict(zip(header, cells, strict=False))) for line, cells in lines]


def _check_columns(path: Path, header: list[str]) -> None:
    for column in header:
        if column not in _COLUMNS:
            near = difflib.get_close_matches(column.lower(), _COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(_COLUMNS)}"
            raise DataError(f"{path}: unknown column {column!r}; {hint}")
        if header.count(column) > 1:
            raise DataError(f"{path}: has the column {column!r} twice")
    if "slide" not in header:
        raise DataError(f"{path}: needs the column slide; has {','.join(header)!r}")


def _parse(cells: dict[str, str], *, folder: Path, where: str) -> ManifestRow:
    slide, patient, mpp = (cells.get(column, "").strip() for column in _COLUMNS)
    if not slide or "\0" in slide:
        raise DataError(f"{where}: the column slide names no file")
    try:
        patient = safe_filename(patient or Path(slide).stem)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return ManifestRow(folder / slide, patient, _number(mpp, where=where) if mpp else None)


def _number(text: str, *, where: str) -> float:
    try:
        mpp = float(text)
    except ValueError:
        raise DataError(f"{where}: mpp {text!r} is no number") from None
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise DataError(
            f"{where}: mpp {text!r} cannot be; microns per pixel are {MIN_MPP:g} to {MAX_MPP:g}"
        )
    return mpp
