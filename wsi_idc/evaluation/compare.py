"""Compare two evaluations patient by patient.

The same patients are drawn for both in each resample, so what is hard about a patient is hard for
both and leaves the difference: its interval is far narrower than either's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.constants import NUM_RESAMPLES
from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import ensure_writable, parse_json, write_json, write_text
from wsi_idc.core.metric_table import METRICS, SMALLER_IS_BETTER
from wsi_idc.metrics import classification as measure
from wsi_idc.metrics.bootstrap import interval, resample_patients, resampled_metrics

_KEY = ["patient", "x", "y"]
_COLUMNS = ("probability", "probability_smoothed")
_MAX_NAMED = 5
_COMPARISON = "comparison.json"
# Of fewer patients a percentile interval is too narrow: without any difference it misses 0 in 15 %
# of comparisons of 5 patients, in 10 % of those of 10.
MIN_PATIENTS = 10


@dataclass(frozen=True)
class Predictions:
    """An evaluation as it lies on disk.

    Attributes:
        folder: Where.
        threshold: From which a patch is called IDC.
        table: One row a patch, sorted: patient, x, y, label, probability (the judged one).
        method: What metrics.json says of the method.
        notes: What a reader of its figures should know, in sentences.
    """

    folder: Path
    threshold: float
    table: pd.DataFrame
    method: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same patches.

    Attributes:
        metrics: One row a metric: metric, a, b, difference (b - a), low, high (95 % interval of
            the difference), better ("a", "b", or "" where the interval holds 0 or there are
            fewer than ``MIN_PATIENTS``).
        patients: One row a patient: patient, patches, then auc and dice of a, b, and b - a.
        num_patients, num_patches: Compared.
        notes: What a reader should know of A, B or both, in sentences.
    """

    metrics: pd.DataFrame
    patients: pd.DataFrame
    num_patients: int
    num_patches: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready; what is undefined is null."""
        return {
            "num_patients": self.num_patients,
            "num_patches": self.num_patches,
            "notes": list(self.notes),
            "metrics": measure.records(self.metrics),
            "patients": measure.records(self.patients),
        }


def read_predictions(folder: Path) -> Predictions:
    """Read an evaluation folder that ``wsi-idc eval`` wrote.

    Raises:
        DataError: It is none, or what it says makes no sense.
    """
    remedy = "run wsi-idc eval again"
    try:
        record = parse_json((folder / "metrics.json").read_text(encoding="utf-8"))
        column, threshold = str(record["judged"]), float(record["threshold"])
        if column not in _COLUMNS:
            raise ValueError(f"judged by {column!r}")
        method = dict(record["provenance"]["method"])
        notes = tuple(str(note) for note in record.get("notes", ()))
        kinds = {"patient": str, "x": np.int64, "y": np.int64, "label": np.int64}
        # "NA" is a patient's name as good as any.
        table = pd.read_csv(folder / "predictions.csv", dtype=kinds, keep_default_na=False)
        table = table[[*kinds, column]].rename(columns={column: "probability"})
        table["probability"] = table["probability"].astype(np.float64)
        if table["patient"].isna().any():
            raise ValueError("a line of predictions.csv ends early")
        measure.check(table["label"].to_numpy(), table["probability"].to_numpy())
        if not 0 <= threshold <= 1:
            raise ValueError(f"a threshold of {threshold}")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = first_line(error)
        raise DataError(f"{folder}: not a readable evaluation ({reason}); {remedy}") from None
    if table.duplicated(_KEY).any() or table.empty:
        raise DataError(f"{folder}: a patch stands twice in predictions.csv, or none; {remedy}")
    # As precise as it was when it was judged, or calls at the threshold could differ.
    table["probability"] = table["probability"].astype(np.float32)
    table = table.sort_values(_KEY, ignore_index=True)
    return Predictions(folder, threshold, table, method, notes)


def compare(
    a: Predictions, b: Predictions, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Comparison:
    """Return by how much ``b`` is better than ``a``, each at its own threshold.

    Raises:
        DataError: They are not of the same patients, patches and labels.
    """
    _check_same(a, b)
    label = a.table["label"].to_numpy()
    ids, code = np.unique(a.table["patient"].to_numpy(), return_inverse=True)
    weights = resample_patients(len(ids), seed=seed, num_resamples=num_resamples)
    points, resampled = [], []
    for one in (a, b):
        probability = one.table["probability"].to_numpy()
        points.append(measure.all_metrics(label, probability, threshold=one.threshold))
        resampled.append(
            resampled_metrics(label, probability, code, threshold=one.threshold, weights=weights)
        )
    rows = []
    for name in METRICS:
        if name == "prevalence":  # the same by nature
            continue
        of_a, of_b = points[0][name], points[1][name]
        differences = resampled[1][name] - resampled[0][name]
        found = _difference(name, of_b - of_a, differences, len(ids))
        rows.append({"metric": name, "a": of_a, "b": of_b, **found})
    return Comparison(
        pd.DataFrame(rows), _by_patient(a, b), len(ids), len(label), _notes(a.notes, b.notes)
    )


def _notes(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is noted of both once, and of the others whose it is."""
    both = [note for note in a if note in b]
    own = [(name, note) for name, notes in (("A", a), ("B", b)) for note in notes]
    return (*both, *(f"{name}: {note}" for name, note in own if note not in both))


def _difference(
    name: str, difference: float, resampled: NDArray[np.float64], num_patients: int
) -> dict[str, Any]:
    low, high = interval(resampled) if num_patients > 1 else (np.nan, np.nan)
    better = ""
    if num_patients >= MIN_PATIENTS and (low > 0 or high < 0):
        better = "b" if (low > 0) != (name in SMALLER_IS_BETTER) else "a"
    return {"difference": difference, "low": low, "high": high, "better": better}


def _by_patient(a: Predictions, b: Predictions) -> pd.DataFrame:
    rows = []
    for patient, at in a.table.groupby("patient").indices.items():
        row: dict[str, Any] = {"patient": patient, "patches": len(at)}
        label = a.table["label"].to_numpy()[at]
        for which, one in (("a", a), ("b", b)):
            probability = one.table["probability"].to_numpy()[at]
            found = measure.all_metrics(label, probability, threshold=one.threshold)
            row |= {f"auc_{which}": found["auc"], f"dice_{which}": found["f1"]}
        for name in ("auc", "dice"):
            row[f"{name}_difference"] = row[f"{name}_b"] - row[f"{name}_a"]
        rows.append(row)
    return pd.DataFrame(rows)


def _check_same(a: Predictions, b: Predictions) -> None:
    """Raise DataError where the two are not of the same patches."""
    ours, theirs = set(a.table["patient"]), set(b.table["patient"])
    if ours != theirs:
        lacking = [
            f"{len(only)} only in {one.folder} ({_some(only)})"
            for one, only in ((a, ours - theirs), (b, theirs - ours))
            if only
        ]
        raise DataError(
            f"not the same patients: {'; '.join(lacking)}; evaluate both on one split and data"
        )
    if not a.table[_KEY].equals(b.table[_KEY]):
        raise DataError(
            f"{a.folder} and {b.folder} have the same patients but not the same patches of them; "
            "evaluate both on the same data"
        )
    if (differing := a.table["label"] != b.table["label"]).any():
        raise DataError(
            f"{a.folder} and {b.folder} disagree in {int(differing.sum())} labels, of patients "
            f"{_some(set(a.table['patient'][differing]))}; evaluate both on the same data"
        )


def _some(names: set[str]) -> str:
    more = ", ..." if len(names) > _MAX_NAMED else ""
    return ", ".join(sorted(names)[:_MAX_NAMED]) + more


def check_comparison_folder(out: Path) -> None:
    """Raise where a comparison cannot be written into ``out``, or not without a loss.

    Raises:
        WsiIdcError: With the reason.
    """
    writes = (_COMPARISON, "comparison.html", "metrics.csv", "patients.csv", "figures")
    ensure_writable(out, writes=writes, marks=(_COMPARISON,))


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write comparison.json, metrics.csv and patients.csv into the folder ``out``."""
    # First: the folder is a comparison's from here on.
    write_json(out / _COMPARISON, comparison.as_dict())
    write_text(out / "metrics.csv", comparison.metrics.to_csv(index=False))
    write_text(out / "patients.csv", comparison.patients.to_csv(index=False))
