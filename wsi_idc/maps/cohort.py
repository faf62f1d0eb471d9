"""Make cohort tables. Each row has a map's areas, regions and agreement with the labels.

The cohort file is an HDF5 file that contains the table and a link to each map.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core import hdf5
from wsi_idc.core.constants import NO_ROLE
from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.errors import BusyError, MapError, WsiIdcError, first_line
from wsi_idc.core.files import safe_filename, starts_with, write_bytes, write_text
from wsi_idc.geometry.regions import largest_region
from wsi_idc.maps.map_reader import COHORT_H5, is_map, map_paths, read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.metrics.classification import auc, confusion, threshold_metrics

logger = logging.getLogger(__name__)
COHORT_CSV = "cohort.csv"
SHORT_SHA = 12
_FORMAT = "wsi-idc-cohort"
_FORMAT_VERSION = 1
_MAX_MAPS = 1_000_000
_MODEL_NOTES = ("tta", "ensemble")
_MODEL_COLUMNS = ("checkpoint_sha256", "architecture", "threshold", *_MODEL_NOTES)
MIXED = "the maps are of %d different models, thresholds or settings; compare only equal ones"
# Name and type of each column, in the order of the table.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("patient", "map", "source"), str),
    **dict.fromkeys(("patches", "labelled_patches"), np.int64),
    **dict.fromkeys(("threshold", "area_mm2", "idc_area_mm2", "idc_fraction"), np.float64),
    **dict.fromkeys(("largest_region_mm2", "mean_probability", "mean_uncertainty"), np.float64),
    **dict.fromkeys(("true_fraction", "dice", "auc", "sensitivity", "specificity"), np.float64),
    **dict.fromkeys(("role", "architecture", "checkpoint_sha256", *_MODEL_NOTES), str),
}
COLUMNS = tuple(_TYPES)


@dataclass
class Cohort:
    """Rows of a cohort table, in the order in which the maps were added.

    Attributes:
        rows: For each patient id, the row of the table.
        paths: For each patient id, the map file.
        failed: For each map file that is not in the table, the reason.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, path: Path, patient_map: PatientMap, *, threshold: float | None = None) -> None:
        """Add the map of file ``path``; raise MapError if the table already has the patient."""
        patient = patient_map.patient
        if patient in self.rows:
            raise MapError(
                f"{path}: patient {patient} is also in {self.paths[patient]}; give only one map"
            )
        self.rows[patient] = cohort_row(
            patient_map, threshold=patient_map.threshold if threshold is None else threshold
        )
        self.paths[patient] = path

    def drop(self, patient: str) -> None:
        """Remove the map of a patient from the table."""
        del self.rows[patient], self.paths[patient]

    def table(self) -> pd.DataFrame:
        """Return the cohort table: one row per map, with the columns ``COLUMNS``."""
        rows = [row | {"map": self.paths[patient].name} for patient, row in self.rows.items()]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write cohort.csv and cohort.h5 into ``folder``, each atomically; return the paths."""
        check_tables(folder)
        table = self.table()
        if (num := num_models(table)) > 1:
            logger.warning(MIXED, num)
        csv, h5 = folder / COHORT_CSV, folder / COHORT_H5
        write_cohort_h5(h5, table, self.paths)
        write_text(csv, csv_text(table, float_format="%.6g"))
        return csv, h5


def num_models(table: pd.DataFrame) -> int:
    """Count the models that made the maps of a table, with their views and thresholds."""
    return len(table[list(_MODEL_COLUMNS)].drop_duplicates())


def check_tables(folder: Path) -> None:
    """Raise MapError if a cohort table in ``folder`` would replace a file of another kind."""
    csv, h5 = folder / COHORT_CSV, folder / COHORT_H5
    if is_map(h5):
        raise MapError(
            f"{h5} is the map of a patient; a table would replace this map; move the map to "
            "another folder"
        )
    is_table = starts_with(csv, ",".join(COLUMNS[:3]).encode())
    for path, is_own in ((h5, is_cohort(h5)), (csv, is_table)):
        if path.exists() and not is_own:
            raise MapError(f"{path} exists and was not written by this command; move it away")


def read_cohort(maps: Path | Sequence[Path], *, threshold: float | None = None) -> Cohort:
    """Read the maps of a cohort without their images; log unusable maps and record them as failed.

    Args:
        maps: Folder of maps, or map files.
        threshold: Lowest probability of a patch called IDC; None means each map's threshold.
    """
    cohort = Cohort()
    for path in map_paths(maps) if isinstance(maps, Path) else maps:
        try:
            cohort.add(path, read_map(path), threshold=threshold)
        except (WsiIdcError, OSError) as error:
            cohort.failed[path] = str(error)
            logger.warning("not in the table: %s", error)
    return cohort


def write_cohort(maps: Path) -> tuple[Path, Path] | None:
    """Write the cohort table of a folder of maps and return the paths of cohort.csv and cohort.h5.

    Return None if the folder has no usable map, or if another process is writing the table.
    """
    cohort = read_cohort(maps)
    try:
        return cohort.write(maps) if cohort.rows else None
    except BusyError:
        logger.info("another process is writing the table of %s", maps)
        return None


def is_older_table(folder: Path, maps: Iterable[Path]) -> bool:
    """Return whether ``folder`` has a cohort table that is older than one of the map files."""
    csv, h5 = folder / COHORT_CSV, folder / COHORT_H5
    if not is_cohort(h5):
        return False
    written = min(path.stat().st_mtime_ns for path in (csv, h5) if path.exists())
    return any(path.stat().st_mtime_ns >= written for path in maps)


def cohort_row(patient_map: PatientMap, *, threshold: float) -> dict[str, Any]:
    """Return the row of a map for the cohort table. The row has no file name.

    An area is that of the different grid cells, so that overlapping patches are not counted twice.
    The part of a cell beyond the edge of the slide does not count. Agreement with the labels is
    computed from the patches with a known label. Undefined values are NaN.
    """
    row_col, model = patient_map.row_col, patient_map.model
    cell_mm2 = (patient_map.cell_px * patient_map.mpp / 1000) ** 2
    on_slide = patient_map.fraction_on_slide
    is_called = patient_map.probability >= threshold
    is_known = patient_map.label >= 0
    label, probability = patient_map.label[is_known], patient_map.probability[is_known]
    counts = vars(confusion(label, probability, threshold=threshold))
    agreement = threshold_metrics(*counts.values())
    uncertainty = patient_map.uncertainty
    role = str(model.get("role_of_patient") or "")
    return {
        "patient": patient_map.patient,
        "source": patient_map.source,
        "patches": len(is_called),
        "labelled_patches": int(is_known.sum()),
        "threshold": threshold,
        "area_mm2": _num_cells(row_col, on_slide) * cell_mm2,
        "idc_area_mm2": _num_cells(row_col[is_called], on_slide[is_called]) * cell_mm2,
        "idc_fraction": float(is_called.mean()),
        "largest_region_mm2": largest_region(is_called, row_col, on_slide) * cell_mm2,
        "mean_probability": float(patient_map.probability.mean()),
        "mean_uncertainty": np.nan if uncertainty is None else float(uncertainty.mean()),
        "true_fraction": float((label == 1).mean()) if len(label) else np.nan,
        "dice": float(agreement["f1"]),
        "auc": auc(label, probability) if np.isfinite(probability).all() else np.nan,
        "sensitivity": float(agreement["sensitivity"]),
        "specificity": float(agreement["specificity"]),
        "role": "" if role == NO_ROLE else role,
        "architecture": str(model.get("architecture") or ""),
        "checkpoint_sha256": str(model.get("sha256") or "")[:SHORT_SHA],
        **{name: format_note(model[name]) if model.get(name) else "" for name in _MODEL_NOTES},
    }


def _num_cells(row_col: NDArray[np.int32], on_slide: NDArray[np.float32]) -> float:
    """Return the number of different cells; a cell counts by its fraction on the slide."""
    _, first = np.unique(row_col, axis=0, return_index=True)
    return float(on_slide[first].sum(dtype=np.float64))


def format_note(value: Any) -> str:
    """Return a value of a model's summary as text: for an ensemble, its short SHA-256 hashes."""
    is_ensemble = isinstance(value, list) and all(
        isinstance(member, Mapping) and member.get("sha256") for member in value
    )
    if value and is_ensemble:
        return " ".join(str(member["sha256"])[:SHORT_SHA] for member in value)
    return value if isinstance(value, str) else json.dumps(value)


def write_cohort_h5(path: Path, table: pd.DataFrame, maps: Mapping[str, Path]) -> None:
    """Write a cohort file in one atomic step. It has the cohort table and links to the maps.

    ``/table/COLUMN`` is a dataset with one entry per map. ``/maps/PATIENT`` is an external link to
    the map. Link targets are relative to the cohort file, so the links stay valid if all files are
    moved together.

    Args:
        path: Path of the cohort file.
        table: Cohort table, one row per map; columns have text or numbers (NaN if unknown).
        maps: For each patient id, the map file.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update({"format": _FORMAT, "format_version": _FORMAT_VERSION, "complete": 0})
        file.attrs["num_maps"] = len(maps)
        columns = file.create_group("table")
        columns.attrs["columns"] = list(table.columns)
        for name, values in table.items():
            if values.dtype.kind in "if":
                columns[str(name)] = values.to_numpy()
            else:
                texts = values.to_numpy(object)
                columns.create_dataset(str(name), data=texts, dtype=h5py.string_dtype())
        links = file.create_group("maps")
        for patient, target in maps.items():
            relative = os.path.relpath(target.resolve(), path.parent.resolve())
            links[safe_filename(patient)] = h5py.ExternalLink(relative, "/")
        file.attrs["complete"] = 1
        file.flush()
        data = file.id.get_file_image()
    write_bytes(path, data)


def is_cohort(path: Path) -> bool:
    """Return whether a file is a cohort file, according to its attribute ``format``."""
    return hdf5.has_format(path, _FORMAT)


def read_cohort_h5(path: Path) -> pd.DataFrame:
    """Read the table of a cohort file; raise MapError if the file is missing or damaged."""
    try:
        with hdf5.open_hdf5(path) as file:
            attrs = hdf5.read_attributes(file)
            if str(attrs.get("format")) != _FORMAT or int(attrs["complete"]) != 1:
                raise ValueError("not a complete cohort file")
            num = int(attrs["num_maps"])
            if num > _MAX_MAPS:
                raise ValueError(f"{num} maps are too many")
            group = hdf5.own_item(file, "table")
            columns = [str(name) for name in hdf5.read_attributes(group)["columns"]]
            spec = hdf5.DatasetSpec(("i4", "i8", "f4", "f8", "text"), (num,))
            table = {name: hdf5.read_dataset(file, f"table/{name}", spec) for name in columns}
            return pd.DataFrame(table)
    except hdf5.UNREADABLE as error:
        reason = first_line(error)
        raise MapError(
            f"{path}: not a usable cohort file ({reason}); make it again with wsi-idc report"
        ) from None
