"""Compare two evaluations of the same patches, or rank evaluations and published results.

A paired bootstrap compares two evaluations: each resample draws the same patients for both
evaluations. A patient that is difficult for both models does not add to the difference. Therefore
the interval of the difference is much narrower than the interval of each evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wsi_idc.core.constants import METRICS_JSON, NUM_RESAMPLES
from wsi_idc.core.csv_table import csv_text, plain_cell
from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import parse_json, regular_file, write_json, write_text
from wsi_idc.core.metric_table import METRICS, SMALLER_IS_BETTER
from wsi_idc.core.text import count, shorten_list
from wsi_idc.evaluation.results import PREDICTIONS_CSV, Evaluation
from wsi_idc.metrics import bootstrap, classification
from wsi_idc.metrics.bootstrap import MIN_PATIENTS

_KEY = ["patient", "slide", "x", "y"]  # without slides, the tables have no column slide
_COLUMNS = ("probability", "probability_smoothed")
_TABLES = ("metrics", "patients")
_COMPARISON_JSON = "comparison.json"
# Arguments of ``core.files.ensure_writable`` for the folder of a comparison.
COMPARISON_FILES = {
    "writes": (_COMPARISON_JSON, "comparison.html", "metrics.csv", "patients.csv", "figures"),
    "marks": (_COMPARISON_JSON,),
}

RANKABLE = tuple(name for name in METRICS if name != "prevalence")
# Sources of the rows of a leaderboard, in their order. Only rows of the first source have a rank.
MEASURED, UNRANKED, PUBLISHED = "measured", "measured on other patches", "published"
_CSV, _JSON = "leaderboard.csv", "leaderboard.json"
# Arguments of ``core.files.ensure_writable`` for the folder of a leaderboard.
LEADERBOARD_FILES = {"writes": (_CSV, _JSON, "leaderboard.html", "figures"), "marks": (_CSV,)}


@dataclass(frozen=True)
class Predictions:
    """Predictions of an evaluation, read from its folder.

    Attributes:
        folder: Folder of the evaluation.
        threshold: A patch is called IDC if its probability is at least the threshold.
        table: One row per patch, sorted by patient, x and y. Columns: patient, x, y, label,
            probability (smoothed if the predictor smooths).
        notes: Sentences about the metrics.
    """

    folder: Path
    threshold: float
    table: pd.DataFrame
    notes: tuple[str, ...] = ()

    def metrics_of(self, rows: Any = slice(None)) -> dict[str, float]:
        """Compute all metrics over the given rows of ``table``; by default, over all rows."""
        part = self.table.iloc[rows]
        return classification.all_metrics(
            part["label"].to_numpy(), part["probability"].to_numpy(), threshold=self.threshold
        )


@dataclass(frozen=True)
class Comparison:
    """Comparison of two evaluations of the same patches.

    Attributes:
        num_patients: Number of compared patients.
        num_patches: Number of compared patches.
        notes: Sentences about evaluation A, evaluation B or both.
        threshold_a: Threshold of evaluation A.
        threshold_b: Threshold of evaluation B.
        metrics: One row per metric. Columns: metric, a, b, difference (b - a), low, high (95 %
            interval of the difference), better ("a", "b" or ""). The column better is "" if the
            interval contains 0 or if there are fewer than ``MIN_PATIENTS`` patients.
        patients: One row per patient. Columns: patient, number of patches, AUC and Dice of
            evaluation A, AUC and Dice of evaluation B, and the differences B - A.
    """

    num_patients: int
    num_patches: int
    notes: tuple[str, ...]
    threshold_a: float
    threshold_b: float
    metrics: pd.DataFrame
    patients: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as a dict for JSON. None replaces NaN."""
        tables = {name: classification.records(getattr(self, name)) for name in _TABLES}
        return vars(self) | tables


def _key(table: pd.DataFrame) -> list[str]:
    return [name for name in _KEY if name in table]


def read_predictions(folder: Path) -> Predictions:
    """Read the predictions in the folder of an evaluation.

    Raises:
        DataError: The folder contains no evaluation, or the content of a file is invalid.
    """
    remedy = "run wsi-idc eval again"
    try:
        record = parse_json(regular_file(folder / METRICS_JSON).read_text(encoding="utf-8"))
        column, threshold = str(record["judged"]), float(record["threshold"])
        if column not in _COLUMNS:
            raise ValueError(f"unknown column {column!r}")
        notes = tuple(str(note) for note in record.get("notes", ()))
        dtypes = {"patient": str, "slide": str, "x": np.int64, "y": np.int64, "label": np.int64}
        # A patient id can be "NA": pandas must not read this text as a missing value.
        table = pd.read_csv(
            regular_file(folder / PREDICTIONS_CSV), dtype=dtypes, keep_default_na=False
        )
        key = _key(table)
        table = table[[*key, "label", column]].rename(columns={column: "probability"})
        for name in key[:-2]:
            table[name] = table[name].map(plain_cell, na_action="ignore")
        table["probability"] = table["probability"].astype(np.float64)
        if table["patient"].isna().any():
            raise ValueError(f"a line of {PREDICTIONS_CSV} is incomplete")
        classification.check_predictions(table["label"].to_numpy(), table["probability"].to_numpy())
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold}")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = first_line(error)
        raise DataError(f"{folder}: not a readable evaluation ({reason}); {remedy}") from None
    if table.duplicated(key).any() or table.empty:
        raise DataError(f"{folder}: {PREDICTIONS_CSV} is empty or lists a patch twice; {remedy}")
    # The evaluation compared float32 numbers with the threshold. In float64, the result of this
    # comparison could differ for a probability near the threshold.
    table["probability"] = table["probability"].astype(np.float32)
    table = table.sort_values(key, ignore_index=True)
    return Predictions(folder, threshold, table, notes)


def compare(
    a: Predictions, b: Predictions, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Comparison:
    """Compare evaluation ``b`` with evaluation ``a``. Each evaluation has its own threshold.

    Raises:
        DataError: The two evaluations have different patients, patches or labels.
    """
    _check_same(a, b)
    label = a.table["label"].to_numpy()
    ids, code = np.unique(a.table["patient"].to_numpy(), return_inverse=True)
    weights = bootstrap.resample_patients(len(ids), seed=seed, num_resamples=num_resamples)
    values_a, values_b = a.metrics_of(), b.metrics_of()
    resampled_a, resampled_b = (
        bootstrap.resampled_metrics(
            label,
            predictions.table["probability"].to_numpy(),
            code,
            threshold=predictions.threshold,
            weights=weights,
        )
        for predictions in (a, b)
    )
    rows = []
    for name in RANKABLE:
        low = high = np.nan
        if len(ids) > 1:
            low, high = bootstrap.interval(resampled_b[name] - resampled_a[name])
        better = ""
        if len(ids) >= MIN_PATIENTS and (low > 0 or high < 0):
            better = "b" if (low > 0) != (name in SMALLER_IS_BETTER) else "a"
        value_a, value_b = values_a[name], values_b[name]
        row = {"metric": name, "a": value_a, "b": value_b, "difference": value_b - value_a}
        rows.append({**row, "low": low, "high": high, "better": better})
    notes = [note for note in a.notes if note in b.notes]
    for name, predictions in (("A", a), ("B", b)):
        notes += [f"{name}: {note}" for note in predictions.notes if note not in notes]
    tables = pd.DataFrame(rows), _compare_patients(a, b)
    return Comparison(len(ids), len(label), tuple(notes), a.threshold, b.threshold, *tables)


def _compare_patients(a: Predictions, b: Predictions) -> pd.DataFrame:
    table = []
    for patient, rows in a.table.groupby("patient").indices.items():
        row: dict[str, Any] = {"patient": patient, "patches": len(rows)}
        for name, predictions in (("a", a), ("b", b)):
            metrics = predictions.metrics_of(rows)
            row |= {f"auc_{name}": metrics["auc"], f"dice_{name}": metrics["f1"]}
        for metric in ("auc", "dice"):
            row[f"{metric}_difference"] = row[f"{metric}_b"] - row[f"{metric}_a"]
        table.append(row)
    return pd.DataFrame(table)


def _check_same(a: Predictions, b: Predictions) -> None:
    patients_a, patients_b = set(a.table["patient"]), set(b.table["patient"])
    if patients_a != patients_b:
        unmatched = [
            f"{len(only)} are only in {predictions.folder} ({shorten_list(sorted(only))})"
            for predictions, only in ((a, patients_a - patients_b), (b, patients_b - patients_a))
            if only
        ]
        raise DataError(
            f"the patients differ: {'; '.join(unmatched)}; evaluate both on the same split and data"
        )
    key = _key(a.table)
    if key != _key(b.table) or not a.table[key].equals(b.table[key]):
        raise DataError(
            f"{a.folder} and {b.folder} have the same patients but not the same patches; "
            "evaluate both on the same data"
        )
    if (differs := a.table["label"] != b.table["label"]).any():
        names = shorten_list(sorted(set(a.table["patient"][differs])))
        raise DataError(
            f"{a.folder} and {b.folder} have {count(int(differs.sum()), 'patch', 'patches')} with "
            f"different labels ({names}); evaluate both on the same data"
        )


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write comparison.json, metrics.csv and patients.csv into the folder ``out``.

    comparison.json is written first: this file marks the folder as the folder of a comparison.
    """
    write_json(out / _COMPARISON_JSON, comparison.as_dict())
    for name in _TABLES:
        write_text(out / f"{name}.csv", csv_text(getattr(comparison, name)))


def leaderboard(
    evaluations: Sequence[tuple[str, Evaluation]], *, rank_by: str = "auc"
) -> pd.DataFrame:
    """Build a table of the evaluations (best first), followed by the published results.

    Each item of ``evaluations`` is a name and an evaluation. The evaluations are grouped by their
    patches. Only the largest group is ranked, and its rows come first. The rows of a group are
    sorted by the metric ``rank_by``.

    Returns:
        Table with the columns rank, name, source ("measured", "measured on other patches" or
        "published"), test (name of the split), patients, patches, threshold, each metric, low and
        high of the interval of ``rank_by``, note. Only a row with source "measured" has a rank.
    """
    rows = []
    for is_ranked, (name, evaluation) in zip(_is_ranked(evaluations), evaluations, strict=True):
        low, high = evaluation.final.intervals[rank_by]
        rows.append(
            {
                "name": name,
                "source": MEASURED if is_ranked else UNRANKED,
                "test": evaluation.split,
                "patients": evaluation.num_patients,
                "patches": evaluation.num_patches,
                "threshold": evaluation.final.threshold,
                **evaluation.final.metrics,
                f"{rank_by}_low": low,
                f"{rank_by}_high": high,
                "note": "; ".join(evaluation.notes),
            }
        )
    table = pd.DataFrame(rows).sort_values(
        rank_by, ascending=rank_by in SMALLER_IS_BETTER, kind="stable", ignore_index=True
    )
    table = table.sort_values("source", kind="stable", ignore_index=True)
    table.insert(0, "rank", (table.index + 1.0).where(table["source"] == MEASURED))
    published = published_results().rename(columns={"work": "name"}).assign(source=PUBLISHED)
    published = published.sort_values("auc", ascending=False, kind="stable")
    return pd.concat([table, published.reindex(columns=table.columns)], ignore_index=True)


def published_results() -> pd.DataFrame:
    """Read published results, measured on unseen patients. Columns: work, test, metrics, note."""
    with (resources.files("wsi_idc.evaluation") / "published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _is_ranked(evaluations: Sequence[tuple[str, Evaluation]]) -> list[bool]:
    """Return for each evaluation whether it is ranked.

    Only the largest group of evaluations of the same patches is ranked. If there are several
    evaluations but no two have the same patches, none is ranked.
    """
    keys = [evaluation.predictions[["patient", "x", "y", "label"]] for _, evaluation in evaluations]
    first_equal = [next(i for i, k in enumerate(keys) if k.equals(key)) for key in keys]
    largest = max(first_equal, key=first_equal.count)
    return [i == largest and first_equal.count(i) >= min(2, len(keys)) for i in first_equal]


def write_leaderboard(table: pd.DataFrame, out: Path) -> None:
    """Write leaderboard.csv and leaderboard.json into the folder ``out``."""
    write_text(out / _CSV, csv_text(table))
    write_json(out / _JSON, classification.records(table))
