"""Make cohort tables: areas, regions and agreement with the labels, for each map and patient."""

import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core import hdf5
from wsi_idc.core.constants import NO_ROLE, NOVEL_PERCENTILE, SHORT_SHA
from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.errors import BusyError, MapError, WsiIdcError
from wsi_idc.core.files import (
    FileVersion,
    file_version,
    starts_with,
    write_bytes,
    write_text,
)
from wsi_idc.data.artifacts import FLAGS
from wsi_idc.geometry.regions import largest_region
from wsi_idc.maps.map_reader import (
    COHORT_H5,
    has_patient_format,
    is_map,
    map_paths,
    read_map_without_cams,
)
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.table_file import read_table_file, table_file_bytes
from wsi_idc.metrics.classification import auc, confusion, threshold_metrics

logger = logging.getLogger(__name__)
COHORT_CSV = "cohort.csv"
PATIENTS_CSV = "patients.csv"
_FORMAT = "wsi-idc-cohort"
_MODEL_NOTES = ("tta", "ensemble")
_MODEL_COLUMNS = (
    *("checkpoint_sha256", "architecture", "threshold", *_MODEL_NOTES, "excluded_flags"),
)
MIXED = (
    "the maps have %d combinations of model, threshold and settings; compare only maps of the "
    "same combination"
)
_FLAG_COLUMNS = tuple(f"flagged_{name}" for name in FLAGS)
_AGREEMENT = ("true_fraction", "dice", "auc", "sensitivity", "specificity")
_OPTIONAL_MEANS = ("mean_uncertainty", "mean_novelty", "novel_fraction")
# Name and type of each column, in the order of the table.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("patient", "map", "source"), str),
    **dict.fromkeys(("patches", "labelled_patches"), np.int64),
    **dict.fromkeys(("threshold", "area_mm2", "idc_area_mm2", "idc_fraction"), np.float64),
    **dict.fromkeys(("largest_region_mm2", "mean_probability", "mean_uncertainty"), np.float64),
    **dict.fromkeys(_AGREEMENT, np.float64),
    **dict.fromkeys(("role", "architecture", "checkpoint_sha256", *_MODEL_NOTES, "slide"), str),
    **dict.fromkeys(("mean_novelty", "novel_fraction"), np.float64),
    "caution": str,
    **dict.fromkeys(("flagged", *_FLAG_COLUMNS), np.float64),
    **dict.fromkeys(("excluded_flags", "source_file"), str),
}
COLUMNS = tuple(_TYPES)
# Names and types of the columns of the table of patients.
PATIENT_TYPES: dict[str, Any] = {"patient": str, "slides": np.int64} | {
    name: _TYPES[name]
    for name in COLUMNS
    if name not in ("patient", "map", "source", "source_file", "slide")
}
PATIENT_COLUMNS = tuple(PATIENT_TYPES)
# Label and probability of the patches of a map with a known label.
Labelled = tuple[NDArray[np.int8], NDArray[np.float32]]


@dataclass(frozen=True)
class MapSummary:
    """The values of a map that the tables need.

    Attributes:
        name: Name of the map.
        row: Row of the cohort table, without the column ``map``.
        labelled: Labels and probabilities of all patches with a known label.
        slide: A key of the slide: maps of the same slide have equal keys. None without a slide.
    """

    name: str
    row: dict[str, Any]
    labelled: Labelled
    slide: tuple[Any, ...] | None


def summarize(patient_map: PatientMap, *, threshold: float | None = None) -> MapSummary:
    """Return the summary of a map; ``threshold`` replaces the threshold of the map."""
    slide, key = patient_map.slide, None
    if slide is not None:
        key = (slide.name, slide.width, slide.height, zlib.crc32(slide.thumbnail.tobytes()))
    threshold = patient_map.threshold if threshold is None else threshold
    row = cohort_row(patient_map, threshold=threshold)
    return MapSummary(patient_map.map_name, row, labelled_patches(patient_map), key)


@dataclass
class Cohort:
    """Rows of a cohort table, in the order in which the maps were added.

    Attributes:
        rows: For each map name, the row of the table.
        paths: For each map name, the map file.
        labelled: For each map name, labels and probabilities of all patches with a known label.
        failed: For each map file that is not in the table, the reason.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    labelled: dict[str, Labelled] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    _names: dict[str, list[str]] = field(default_factory=dict)  # map names of each patient
    _slides: dict[tuple[Any, ...], str] = field(default_factory=dict)  # map name of each slide

    def add(self, path: Path, summary: MapSummary) -> None:
        """Add the summary of a map that was read from the file ``path``.

        A patient has either one map, or a map for each slide.

        Raises:
            MapError: The table already has this map, or the patient would have both kinds of maps.
        """
        patient, name = summary.row["patient"], summary.name
        names = self._names.setdefault(patient, [])
        if name in names or (names and patient in (name, names[0])):
            other = self.paths[name if name in names else names[0]]
            raise MapError(f"{path}: patient {name} is also in {other}; give only one map")
        if summary.slide and (first := self._slides.setdefault(summary.slide, name)) != name:
            message = "slide %s has two maps, %s and %s: sums count it twice; remove one map"
            logger.warning(message, summary.slide[0], first, name)
        self.rows[name], self.paths[name] = summary.row, path
        self.labelled[name] = summary.labelled
        names.append(name)

    def drop(self, name: str) -> None:
        """Remove a map from the table."""
        row = self.rows.pop(name)
        del self.paths[name], self.labelled[name]
        self._names[row["patient"]].remove(name)

    def table(self) -> pd.DataFrame:
        """Return the cohort table: one row per map, with the columns ``COLUMNS``."""
        rows = [row | {"map": _file_name(self.paths[name], row)} for name, row in self.rows.items()]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)

    def patients(self) -> pd.DataFrame:
        """Return the table of patients: one row per patient. Columns are ``PATIENT_COLUMNS``."""
        rows = [self.patient_row(patient) for patient, names in self._names.items() if names]
        return pd.DataFrame(rows, columns=list(PATIENT_COLUMNS)).astype(PATIENT_TYPES)

    def patient_row(self, patient: str) -> dict[str, Any]:
        """Return a patient's row of the table of patients; see the function ``patient_row``."""
        names = self._names[patient]
        return patient_row([self.rows[n] for n in names], [self.labelled[n] for n in names])

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write cohort.csv, cohort.h5 and patients.csv, each atomically; return the paths."""
        check_tables(folder)
        table = self.table()
        if (num := num_models(table)) > 1:
            logger.warning(MIXED, num)
        csv, h5, patients = folder / COHORT_CSV, folder / COHORT_H5, folder / PATIENTS_CSV
        write_cohort_h5(h5, table, self.paths)
        write_text(patients, csv_text(self.patients(), float_format="%.6g"))
        write_text(csv, csv_text(table, float_format="%.6g"))
        return csv, h5, patients


def _file_name(path: Path, row: Mapping[str, Any]) -> str:
    return f"{path.parent.name}/{path.name}" if row["slide"] else path.name


def num_models(table: pd.DataFrame) -> int:
    """Count the different combinations of model, threshold and settings in a table of maps."""
    return len(table[list(_MODEL_COLUMNS)].drop_duplicates())


def check_tables(folder: Path) -> None:
    """Raise MapError if a cohort table in ``folder`` would replace a file of another kind."""
    csv, h5, patients = folder / COHORT_CSV, folder / COHORT_H5, folder / PATIENTS_CSV
    if is_map(h5) or has_patient_format(h5):
        raise MapError(
            f"{h5} is the map of a patient; a table would replace this map; move the map to "
            "another folder"
        )
    is_own_file = {
        h5: is_cohort(h5),
        csv: starts_with(csv, ",".join(COLUMNS[:3]).encode()),
        patients: starts_with(patients, ",".join(PATIENT_COLUMNS[:3]).encode()),
    }
    for path, is_own in is_own_file.items():
        if path.exists() and not is_own:
            raise MapError(f"{path} exists and was not written by this command; move it away")


def read_cohort(
    maps: Path | Sequence[Path],
    *,
    threshold: float | None = None,
    known: Mapping[FileVersion, MapSummary] | None = None,
) -> Cohort:
    """Read the maps of a cohort without their images; log unusable maps and record them as failed.

    Args:
        maps: Folder of maps, or map files.
        threshold: Lowest probability at which a patch is called IDC; None means the threshold of
            each map.
        known: Summaries of maps, which need not be read if the files have not changed.
    """
    cohort = Cohort()
    for path in map_paths(maps) if isinstance(maps, Path) else maps:
        try:
            summary = (known or {}).get(file_version(path))
            if summary is None:
                summary = summarize(read_map_without_cams(path), threshold=threshold)
            cohort.add(path, summary)
        except (WsiIdcError, OSError) as error:
            cohort.failed[path] = str(error)
            logger.warning("not in the table: %s", error)
    return cohort


def write_cohort(
    maps: Path, known: Mapping[FileVersion, MapSummary] | None = None
) -> tuple[Path, Path, Path] | None:
    """Write the cohort tables of a folder of maps; return the paths of the tables.

    Return None if the folder has no usable map, or if another process is writing the table.
    ``known`` is the same as in ``read_cohort``.
    """
    cohort = read_cohort(maps, known=known)
    try:
        return cohort.write(maps) if cohort.rows else None
    except BusyError:
        logger.info("another process is writing the table of %s", maps)
        return None


def is_older_table(folder: Path, maps: Iterable[Path]) -> bool:
    """Return whether ``folder`` has a cohort table that is older than one of the files ``maps``."""
    csv, h5 = folder / COHORT_CSV, folder / COHORT_H5
    if not is_cohort(h5):
        return False
    written = min(path.stat().st_mtime_ns for path in (csv, h5) if path.exists())
    return any(path.stat().st_mtime_ns >= written for path in maps)


def cohort_row(patient_map: PatientMap, *, threshold: float) -> dict[str, Any]:
    """Return the row of a map for the cohort table, without the column ``map``.

    An area is the sum of the areas of grid cells. Each cell is counted once, also if patches
    overlap. The part of a cell beyond the edge of the slide is not counted. If the map excludes
    flagged patches, areas and the largest region are computed without these patches. Fractions and
    means are computed from all patches. Agreement with the labels is computed from the patches with
    a known label. Undefined values are NaN.
    """
    row_col, model = patient_map.row_col, patient_map.model
    cell_mm2 = (patient_map.cell_px * patient_map.mpp / 1000) ** 2
    on_slide = patient_map.fraction_on_slide
    is_called = patient_map.probability >= threshold
    is_counted = patient_map.is_counted
    in_region = is_called & is_counted
    labelled = labelled_patches(patient_map)
    uncertainty, novelty = patient_map.uncertainty, patient_map.novelty
    role = str(model.get("role_of_patient") or "")
    return {
        "patient": patient_map.patient,
        "source": patient_map.source,
        "patches": len(is_called),
        "labelled_patches": len(labelled[0]),
        "threshold": threshold,
        "area_mm2": _num_cells(row_col[is_counted], on_slide[is_counted]) * cell_mm2,
        "idc_area_mm2": _num_cells(row_col[in_region], on_slide[in_region]) * cell_mm2,
        "idc_fraction": float(is_called.mean()),
        "largest_region_mm2": largest_region(in_region, row_col, on_slide) * cell_mm2,
        "mean_probability": float(patient_map.probability.mean()),
        "mean_uncertainty": np.nan if uncertainty is None else float(uncertainty.mean()),
        **_agreement([labelled], [threshold]),
        "role": "" if role == NO_ROLE else role,
        "architecture": str(model.get("architecture") or ""),
        "checkpoint_sha256": str(model.get("sha256") or "")[:SHORT_SHA],
        **{name: format_note(model[name]) if model.get(name) else "" for name in _MODEL_NOTES},
        "slide": patient_map.slide_name,
        "mean_novelty": np.nan if novelty is None else float(novelty.mean()),
        "novel_fraction": np.nan if novelty is None else float((novelty > NOVEL_PERCENTILE).mean()),
        "caution": patient_map.caution,
        **_flag_counts(patient_map),
        "excluded_flags": " ".join(patient_map.flag_bits) if patient_map.exclude_flagged else "",
        "source_file": patient_map.source_file,
    }


def flag_counts_of(row: Mapping[str, Any]) -> dict[str, int]:
    """Return a dict from flag to number of patches for a row of the cohort table.

    The dict is empty if the map has no quality flags.
    """
    known = {name: row[f"flagged_{name}"] for name in FLAGS if f"flagged_{name}" in row}
    return {name: int(value) for name, value in known.items() if not np.isnan(value)}


def _flag_counts(patient_map: PatientMap) -> dict[str, float]:
    """Return the flag columns of a row: the number of flagged patches, and a number per flag.

    Unknown numbers are NaN.
    """
    counts, flags = patient_map.flag_counts(), patient_map.flags
    flagged = {"flagged": np.nan if flags is None else float((flags > 0).sum())}
    return flagged | {f"flagged_{name}": float(counts.get(name, np.nan)) for name in FLAGS}


def patient_row(rows: Sequence[Mapping[str, Any]], labelled: Sequence[Labelled]) -> dict[str, Any]:
    """Combine the rows of a patient's slides into one row of the table of patients.

    Numbers of patches are summed, and areas are summed. Fractions and means are computed over all
    patches of the patient. Agreement with the labels is computed over the patches in ``labelled``,
    which has the labels and probabilities of each slide. The largest region is the maximum over the
    slides. If slides have different thresholds, the threshold is NaN. Different texts of the slides
    are joined by a space. If only some slides leave out flagged patches, ``excluded_flags`` is
    "mixed".
    """
    thresholds = [row["threshold"] for row in rows]
    sums = {
        name: sum(row[name] for row in rows)
        for name in (
            *("patches", "labelled_patches", "area_mm2", "idc_area_mm2", "flagged", *_FLAG_COLUMNS),
        )
    }
    means = {
        name: float(sum(row[name] * row["patches"] for row in rows) / sums["patches"])
        for name in ("idc_fraction", "mean_probability", *_OPTIONAL_MEANS)
    }
    texts = {
        name: " ".join(dict.fromkeys(row[name] for row in rows if row[name]))
        for name in ("role", "architecture", "checkpoint_sha256", *_MODEL_NOTES, "caution")
    }
    if len(rows) == 1:
        agreement = {name: rows[0][name] for name in _AGREEMENT}
    else:
        agreement = _agreement(labelled, thresholds)
    excluded = {row["excluded_flags"] for row in rows}
    values = {
        "patient": rows[0]["patient"],
        "slides": len(rows),
        "threshold": thresholds[0] if len(set(thresholds)) == 1 else np.nan,
        **sums,
        **means,
        "largest_region_mm2": max(row["largest_region_mm2"] for row in rows),
        **agreement,
        **texts,
        "excluded_flags": excluded.pop() if len(excluded) == 1 else "mixed",
    }
    return {name: values[name] for name in PATIENT_COLUMNS}


def labelled_patches(patient_map: PatientMap) -> Labelled:
    """Return the labels and the probabilities of all patches with a known label."""
    is_known = patient_map.label >= 0
    return patient_map.label[is_known], patient_map.probability[is_known]


def _agreement(labelled: Sequence[Labelled], thresholds: Sequence[float]) -> dict[str, float]:
    """Compare the labels of maps with the probabilities.

    Args:
        labelled: For each map, the labels and probabilities of the patches with a known label.
        thresholds: For each map, the threshold.
    """
    counts = np.zeros(4)
    for (label, probability), threshold in zip(labelled, thresholds, strict=True):
        counts += list(vars(confusion(label, probability, threshold=threshold)).values())
    metrics = threshold_metrics(*counts)
    label, probability = (np.concatenate(part) for part in zip(*labelled, strict=True))
    return {
        "true_fraction": float((label == 1).mean()) if len(label) else np.nan,
        "dice": float(metrics["f1"]),
        "auc": auc(label, probability) if np.isfinite(probability).all() else np.nan,
        "sensitivity": float(metrics["sensitivity"]),
        "specificity": float(metrics["specificity"]),
    }


def _num_cells(row_col: NDArray[np.int32], on_slide: NDArray[np.float32]) -> float:
    """Count different cells. For a cell at the edge, only the fraction on the slide is added."""
    _, first = np.unique(row_col, axis=0, return_index=True)
    return float(on_slide[first].sum(dtype=np.float64))


def format_note(value: Any) -> str:
    """Return a value of a record as text.

    The text for an ensemble is a list of short SHA-256 hashes, one per checkpoint.
    """
    is_ensemble = isinstance(value, list) and all(
        isinstance(member, Mapping) and member.get("sha256") for member in value
    )
    if value and is_ensemble:
        return " ".join(str(member["sha256"])[:SHORT_SHA] for member in value)
    return value if isinstance(value, str) else json.dumps(value)


def write_cohort_h5(path: Path, table: pd.DataFrame, maps: Mapping[str, Path]) -> None:
    """Write a cohort file in one atomic step; ``table_file_bytes`` describes the arguments."""
    write_bytes(path, table_file_bytes(path.parent, _FORMAT, table, maps))


def is_cohort(path: Path) -> bool:
    """Return whether a file is a cohort file, according to its attribute ``format``."""
    return hdf5.has_format(path, _FORMAT)


def read_cohort_h5(path: Path) -> pd.DataFrame:
    """Read the table of a cohort file; raise MapError if the file is missing or damaged."""
    _, table = read_table_file(path, _FORMAT, kind="cohort file", remedy="wsi-idc report")
    return table
