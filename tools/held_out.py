"""Predictions of the models of the folds in jobs/bundled, each on patients that it has not seen.

Functions that tools/bundle.py and tools/cross_validation.py share.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import compute_metrics
from wsi_idc.evaluation.results import MetricSet
from wsi_idc.inference.calibration import best_f1_threshold, fit_smoothing, fit_temperature
from wsi_idc.inference.neighbors import complete_rows
from wsi_idc.inference.predict import predict_logits
from wsi_idc.inference.probability import log_odds
from wsi_idc.metrics.bootstrap import resample_patients
from wsi_idc.metrics.classification import all_metrics
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.models.smoothing import NeighborModel, Smoothing
from wsi_idc.runtime.device import select_device
from wsi_idc.training.setup import labeled_rows

NUM_FOLDS = 4
RAW, GAUSSIAN, NEIGHBORS = "no smoothing", "Gaussian", "neighbor model"


def fold_runs(recipe: Path, folds: Sequence[int] = range(NUM_FOLDS)) -> list[Path]:
    """Return the run folder of each fold; stop the script if a fold has no or several folders.

    ``recipe`` is the common start of the paths of the folders.
    """
    runs = []
    for fold in folds:
        folders = list(recipe.parent.glob(f"{recipe.name}*fold{fold}*"))
        if len(folders) != 1:
            raise SystemExit(f"{recipe}: {len(folders)} folders have a name with fold{fold}, not 1")
        runs += folders
    return runs


def held_out_predictions(pack: Pack, runs: Sequence[Path]) -> pd.DataFrame:
    """Predict the test patients of each run.

    Returns:
        One row per patch, sorted by patient, x and y. Columns: patient, slide, x, y, row, col,
        label, log_odds (not calibrated), fold (position of the run).
    """
    tables, device_config = [], select_device(precision="fp32")
    for fold, run in enumerate(runs):
        checkpoint = load_checkpoint(run / "best.pt")
        rows = labeled_rows(pack, checkpoint.patients("test"))
        logit = predict_logits(checkpoint.build(), pack, rows, device_config=device_config)
        table = pack.index.iloc[rows][["slide", "x", "y", "label"]].reset_index(drop=True)
        table.insert(0, "patient", pack.patient_of[rows])
        table["row"], table["col"] = pack.cells()[rows].T
        table["log_odds"] = (logit[:, 1] - logit[:, 0]).astype(np.float64)
        tables.append(table.assign(fold=fold))
    return pd.concat(tables).sort_values(["patient", "x", "y"], ignore_index=True)


def natural_rows(table: pd.DataFrame, sample: Pack) -> pd.DataFrame:
    """Return the rows of the patches that ``sample`` has too."""
    drawn, known = (
        pd.MultiIndex.from_frame(each[["patient", "x", "y"]])
        for each in (sample.index.assign(patient=sample.patient_of), table)
    )
    return table[known.isin(drawn)]


def with_probability(table: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return the table with the column probability, which is calibrated by ``temperature``."""
    probability = expit(table["log_odds"].to_numpy() / temperature)
    return table.assign(probability=probability.astype(np.float32))


def temperature_of(table: pd.DataFrame) -> float:
    """Return the temperature that calibrates the log odds of a table."""
    odds = table["log_odds"].to_numpy()
    return fit_temperature(np.stack([np.zeros_like(odds), odds], axis=1), table["label"].to_numpy())


def threshold_of(table: pd.DataFrame) -> float:
    """Return the threshold with the largest F1."""
    return best_f1_threshold(table["label"].to_numpy(), table["probability"].to_numpy())


def metrics_of(table: pd.DataFrame, threshold: float) -> MetricSet:
    """Compute all metrics of the probabilities, with intervals by bootstrap over patients."""
    ids, code = np.unique(table["patient"].to_numpy(), return_inverse=True)
    weights = resample_patients(len(ids), seed=0)
    return compute_metrics(table, "probability", threshold, code, weights)


def complete_patients(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the patients whose patches are complete."""
    row_col = table[["row", "col"]].to_numpy(np.int32)
    return table.iloc[complete_rows(table["label"].to_numpy(), table["slide"].to_numpy(), row_col)]


def smoothing_of(table: pd.DataFrame, patch_um: float) -> tuple[Smoothing, NeighborModel]:
    """Fit the Gaussian and the neighbor model to complete patients.

    Args:
        table: Result of ``with_probability``.
        patch_um: Side of a patch in um.
    """
    gaussian, neighbors = fit_smoothing(
        log_odds(table["probability"].to_numpy()),
        table["label"].to_numpy(),
        table["slide"].to_numpy(),
        table[["row", "col"]].to_numpy(np.int32),
        patch_um=patch_um,
        choose=best_f1_threshold,
    )
    if neighbors is None:
        raise SystemExit("too few patients are complete to fit a neighbor model")
    return gaussian, neighbors


def compare_smoothing(table: pd.DataFrame, threshold: float, patch_um: float) -> pd.DataFrame:
    """Evaluate each smoothing on each complete patient, after fitting it to the others.

    Args:
        table: Result of ``with_probability``.
        threshold: Threshold of the probabilities without smoothing.
        patch_um: Side of a patch in um.

    Returns:
        One row per patient and smoothing. Columns: patient, smoothing, auc, average_precision, f1
        (equal to the Dice coefficient of the patches), ece.
    """
    whole, records = complete_patients(table), []
    for patient in sorted(set(whole["patient"])):
        own, others = (whole[(whole["patient"] == patient) == is_own] for is_own in (True, False))
        probability, row_col = own["probability"].to_numpy(), own[["row", "col"]].to_numpy(np.int32)
        smoothed = [(RAW, probability, threshold)]
        for name, each in zip((GAUSSIAN, NEIGHBORS), smoothing_of(others, patch_um), strict=True):
            odds = each.smooth(log_odds(probability), row_col, cell_um=patch_um)
            smoothed.append((name, expit(odds).astype(np.float32), each.threshold))
        for name, values, cut in smoothed:
            metrics = all_metrics(own["label"].to_numpy(), values, threshold=cut)
            columns = {key: metrics[key] for key in ("auc", "average_precision", "f1", "ece")}
            records.append({"patient": patient, "smoothing": name, **columns})
    return pd.DataFrame(records)


def smoothing_lines(comparison: pd.DataFrame) -> list[str]:
    """Return a Markdown table of a result of ``compare_smoothing``: AUC, AP and Dice."""
    names = (RAW, GAUSSIAN, NEIGHBORS)
    metrics = ["auc", "average_precision", "f1"]
    values = {name: comparison[comparison["smoothing"] == name][metrics] for name in names}
    lines = [f"| patient | {' | '.join(names)} |", "|---|---|---|---|"]
    for place, patient in enumerate(sorted(set(comparison["patient"]))):
        cells = [_slashed(each.iloc[place]) for each in values.values()]
        lines.append(f"| {patient} | {' | '.join(cells)} |")
    means = [_slashed(each.mean()) for each in values.values()]
    lines.append(f"| mean | {' | '.join(means)} |")
    for name, other in ((GAUSSIAN, RAW), (NEIGHBORS, RAW), (NEIGHBORS, GAUSSIAN)):
        difference = values[name].to_numpy() - values[other].to_numpy()
        texts = [
            f"{each.mean():+.3f} ({sum(each > 0)} of {len(each)} better)" for each in difference.T
        ]
        lines.append(f"| {name}, difference from {other} | {' | '.join(texts)} |")
    return lines


def _slashed(values: pd.Series) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def with_interval(metric_set: MetricSet, name: str) -> str:
    """Return a metric as text, with its interval."""
    low, high = metric_set.intervals[name]
    return f"{metric_set.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"
