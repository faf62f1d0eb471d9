"""What a cohort's maps say, a row each: areas, regions, and how calls agree with labels."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import NO_ROLE
from wsi_idc.core.errors import BusyError, MapError, WsiIdcError
from wsi_idc.core.files import write_text
from wsi_idc.geometry.regions import largest_region
from wsi_idc.maps.cohort_file import check_replaceable, write_cohort_h5
from wsi_idc.maps.map_reader import COHORT_H5, map_paths, read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.metrics.classification import auc, confusion, threshold_metrics

logger = logging.getLogger(__name__)
COHORT_CSV = "cohort.csv"
SHORT_SHA = 12
# What a checkpoint may say of views and members, as it stands in a map's "model".
_MODEL_NOTES = ("tta", "ensemble")
_TEXT = (
    *("patient", "map", "source", "role", "architecture", "checkpoint_sha256"),
    *_MODEL_NOTES,
)
_NUMBERS = (
    *("threshold", "area_mm2", "idc_area_mm2", "idc_fraction", "largest_region_mm2"),
    *("mean_probability", "mean_uncertainty", "true_fraction"),
    *("dice", "auc", "sensitivity", "specificity"),
)
_COUNTS = ("patches", "labelled_patches")
COLUMNS = (
    *("patient", "map", "source", "patches", "labelled_patches", "threshold"),
    *_NUMBERS[1:],
    *("role", "architecture", "checkpoint_sha256", *_MODEL_NOTES),
)


@dataclass
class Cohort:
    """Maps, a row each, in the order they were added.

    Attributes:
        rows: What ``row_of`` says of each patient.
        paths: The map file of each patient.
        failed: Map file to the reason why it is not in the cohort.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, path: Path, content: PatientMap, *, threshold: float | None = None) -> None:
        """Add the map ``content``, read from ``path``.

        Raises:
            MapError: Its patient is there already.
        """
        if content.patient in self.rows:
            raise MapError(
                f"{path}: patient {content.patient} is in {self.paths[content.patient]} too; "
                "name one of the two"
            )
        self.rows[content.patient] = row_of(
            content, threshold=content.threshold if threshold is None else threshold
        )
        self.paths[content.patient] = path

    def drop(self, patient: str) -> None:
        """Take a patient out again."""
        del self.rows[patient], self.paths[patient]

    def table(self) -> pd.DataFrame:
        """Return the table, one row a map, of the columns ``COLUMNS``."""
        rows = [row | {"map": self.paths[name].name} for name, row in self.rows.items()]
        types: dict[str, Any] = dict.fromkeys(_TEXT, str)
        types |= dict.fromkeys(_NUMBERS, np.float64) | dict.fromkeys(_COUNTS, np.int64)
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``cohort.csv`` and ``cohort.h5`` into ``folder``, each in one atomic step.

        Raises:
            MapError: As of ``check_tables``.
        """
        check_tables(folder)
        table = self.table()
        csv, hdf5 = folder / COHORT_CSV, folder / COHORT_H5
        write_cohort_h5(hdf5, table, self.paths)
        write_text(csv, table.to_csv(index=False, float_format="%.6g"))
        return csv, hdf5


def check_tables(folder: Path) -> None:
    """Raise where the table of a cohort would take the place of something else in ``folder``.

    Raises:
        MapError: A map of a patient named cohort, or what is no such table, is there.
    """
    check_replaceable(folder / COHORT_H5)
    csv = folder / COHORT_CSV
    if csv.exists() and not _is_table(csv):
        raise MapError(f"{csv} is of something else and would be lost; move it away")


def _is_table(csv: Path) -> bool:
    start = ",".join(COLUMNS[:3]).encode()
    if not csv.is_file():  # a pipe would be waited for
        return False
    with csv.open("rb") as file:
        return file.read(len(start)) == start


def cohort_table(maps: Path | Sequence[Path], *, threshold: float | None = None) -> pd.DataFrame:
    """Return what the maps of a cohort say, one row a map.

    A map that cannot be used is left out; the log says which and why.

    Args:
        maps: A folder of maps, or their files.
        threshold: Probability from which a patch is called IDC; None takes each map's own.
    """
    return read_cohort(maps, threshold=threshold).table()


def read_cohort(maps: Path | Sequence[Path], *, threshold: float | None = None) -> Cohort:
    """Read maps, all but their images, and set aside those that cannot be used."""
    cohort = Cohort()
    for path in map_paths(maps) if isinstance(maps, Path) else maps:
        try:
            cohort.add(path, read_map(path), threshold=threshold)
        except (WsiIdcError, OSError) as error:
            cohort.failed[path] = str(error)
            logger.warning("not in the table: %s", error)
    return cohort


def row_of(content: PatientMap, *, threshold: float) -> dict[str, Any]:
    """Return a map's row of the table, but for the name of its file.

    Areas are cells of the grid times the area of a cell, so that patches which overlap count once.
    What compares calls with labels looks at known labels alone, and is NaN where it cannot be told.
    """
    cell_mm2 = cell_area_mm2(content)
    called = content.probability >= threshold
    known = content.label >= 0
    truth, probability = content.label[known], content.probability[known]
    counts = vars(confusion(truth, probability, threshold=threshold))
    agreed = threshold_metrics(*counts.values())
    uncertainty = content.uncertainty
    return {
        "patient": content.patient,
        "source": content.source,
        "patches": len(called),
        "labelled_patches": int(known.sum()),
        "threshold": threshold,
        "area_mm2": num_cells(content.row_col) * cell_mm2,
        "idc_area_mm2": num_cells(content.row_col[called]) * cell_mm2,
        "idc_fraction": float(called.mean()),
        "largest_region_mm2": largest_region(called, content.row_col) * cell_mm2,
        "mean_probability": float(content.probability.mean()),
        "mean_uncertainty": np.nan if uncertainty is None else float(uncertainty.mean()),
        "true_fraction": float((truth == 1).mean()) if len(truth) else np.nan,
        "dice": float(agreed["f1"]),
        "auc": auc(truth, probability) if np.isfinite(probability).all() else np.nan,
        "sensitivity": float(agreed["sensitivity"]),
        "specificity": float(agreed["specificity"]),
        **_of_the_model(content.model),
    }


def _of_the_model(model: Mapping[str, Any]) -> dict[str, str]:
    notes = {name: note_of(model[name]) for name in _MODEL_NOTES if model.get(name)}
    role = str(model.get("role_of_patient") or "")
    return {
        "role": "" if role == NO_ROLE else role,
        "architecture": str(model.get("architecture") or ""),
        "checkpoint_sha256": str(model.get("sha256") or "")[:SHORT_SHA],
        **dict.fromkeys(_MODEL_NOTES, ""),
        **notes,
    }


def note_of(value: Any) -> str:
    """Return what a checkpoint says of views or members in a few words.

    A member that is a whole checkpoint's summary becomes the first digits of its SHA-256.
    """
    if isinstance(value, list) and value and all(_is_member(member) for member in value):
        return " ".join(str(member["sha256"])[:SHORT_SHA] for member in value)
    return value if isinstance(value, str) else json.dumps(value)


def _is_member(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.get("sha256"))


def cell_area_mm2(content: PatientMap) -> float:
    """Return the area of a cell of the grid in mm2; of what a patch alone stands for."""
    return (content.cell_px * content.mpp / 1000) ** 2


def num_cells(row_col: NDArray[np.int32]) -> int:
    """Return how many different cells there are among ``row_col``, shape (N, 2)."""
    return len(np.unique(row_col, axis=0))


def write_cohort(maps: Path) -> tuple[Path, Path] | None:
    """Write the table of a folder's maps, cohort.csv and cohort.h5, and return the two files.

    None where there is no map, or another process is writing them.
    """
    cohort = read_cohort(maps)
    try:
        return cohort.write(maps) if cohort.rows else None
    except BusyError:
        logger.info("another process is writing the table of %s", maps)
        return None
