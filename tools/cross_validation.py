"""Compare recipes of the bundled model by cross-validation; print Markdown.

    python tools/cross_validation.py data/idc.h5 data/natural.h5 runs/base runs/bundled

A recipe is the common start of the names of its four run folders. Their names contain fold0 to
fold3, and their splits are those of jobs/bundled.
Each patient is predicted by the model that was not trained on this patient: one view, without
neighbors. The metrics are those of the patches in the second pack, a random sample of each patient.
Differences from the first recipe are paired by patient. The smoothing is compared on the patients
whose patches are complete: it is fitted to all but one of them, and applied to this one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.compare import Predictions, compare
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

FOLDS = ("fold0", "fold1", "fold2", "fold3")
METRICS = ("auc", "average_precision", "ece", "sensitivity", "specificity")
PAIRED = ("auc", "average_precision", "brier")


def main(data: Path, natural: Path, recipes: Sequence[Path]) -> None:
    """Print the tables."""
    pack, sample = Pack(data), Pack(natural)
    predictions = [held_out_predictions(pack, fold_runs(recipe)) for recipe in recipes]
    drawn = [natural_rows(table, sample) for table in predictions]
    lines = recipe_table([recipe.name for recipe in recipes], drawn)
    for recipe, table, own in zip(recipes, predictions, drawn, strict=True):
        lines += ["", f"Smoothing of {recipe.name}:", "", *smoothing_table(pack, table, own)]
    sys.stdout.write("\n".join(lines) + "\n")


def fold_runs(recipe: Path) -> list[Path]:
    """Return the run folder of each fold; stop the script if a fold has no or several folders."""
    runs = []
    for fold in FOLDS:
        found = list(recipe.parent.glob(f"{recipe.name}*{fold}*"))
        if len(found) != 1:
            raise SystemExit(f"{recipe}: {len(found)} folders have a name with {fold}, not one")
        runs += found
    return runs


def held_out_predictions(pack: Pack, runs: Sequence[Path]) -> pd.DataFrame:
    """Predict the test patients of each run.

    Returns:
        One row per patch, sorted by patient, x and y. Columns: patient, slide, x, y, row, col,
        label, log_odds (not calibrated).
    """
    tables, device_config = [], select_device()
    for run in runs:
        checkpoint = load_checkpoint(run / "best.pt")
        rows = labeled_rows(pack, checkpoint.patients("test"))
        logit = predict_logits(checkpoint.build(), pack, rows, device_config=device_config)
        table = pack.index.iloc[rows][["slide", "x", "y", "label"]].reset_index(drop=True)
        table.insert(0, "patient", pack.patient_of[rows])
        table["row"], table["col"] = pack.cells()[rows].T
        table["log_odds"] = (logit[:, 1] - logit[:, 0]).astype(np.float64)
        tables.append(table)
    return pd.concat(tables).sort_values(["patient", "x", "y"], ignore_index=True)


def natural_rows(table: pd.DataFrame, sample: Pack) -> pd.DataFrame:
    """Return the rows of the patches that ``sample`` has too."""
    drawn = sample.index[["x", "y"]].assign(patient=sample.patient_of)
    return table.merge(drawn, on=["patient", "x", "y"])


def temperature_of(table: pd.DataFrame) -> float:
    """Return the temperature that calibrates the log odds of a table."""
    return fit_temperature(_as_logits(table["log_odds"]), table["label"].to_numpy())


def _as_logits(odds: pd.Series) -> NDArray[np.float64]:
    return np.stack([np.zeros(len(odds)), odds.to_numpy()], axis=1)


def metrics_of(table: pd.DataFrame, probability: NDArray, threshold: float) -> MetricSet:
    """Compute all metrics of probabilities, with intervals by bootstrap over patients."""
    ids, code = np.unique(table["patient"].to_numpy(), return_inverse=True)
    weights = resample_patients(len(ids), seed=0)
    values = table.assign(probability=probability.astype(np.float32))
    return compute_metrics(values, "probability", threshold, code, weights)


def recipe_table(names: Sequence[str], tables: Sequence[pd.DataFrame]) -> list[str]:
    """Return a Markdown table: metrics of each recipe, and differences from the first recipe."""
    columns = [*METRICS, *(f"difference of {name}" for name in PAIRED)]
    lines = [f"| recipe | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    first: Predictions | None = None
    for name, table in zip(names, tables, strict=True):
        probability = expit(table["log_odds"].to_numpy() / temperature_of(table))
        threshold = best_f1_threshold(table["label"].to_numpy(), probability.astype(np.float32))
        final = metrics_of(table, probability, threshold)
        cells = [with_interval(final.metrics[m], final.intervals[m]) for m in METRICS]
        own = table.assign(probability=probability.astype(np.float32))
        predictions = Predictions(Path(name), threshold, own)
        if first is None:
            first, differences = predictions, ["" for _ in PAIRED]
        else:
            paired = compare(first, predictions).metrics.set_index("metric").loc[list(PAIRED)]
            differences = [
                f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
                for row in paired.itertuples()
            ]
        lines.append(f"| {name} | {' | '.join([*cells, *differences])} |")
    return lines


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """Return a value as text, with its interval."""
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def complete_patients(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the patients whose patches are complete."""
    row_col = table[["row", "col"]].to_numpy(np.int32)
    return table.iloc[complete_rows(table["label"].to_numpy(), table["slide"].to_numpy(), row_col)]


def smoothing_of(
    pack: Pack, table: pd.DataFrame, temperature: float
) -> tuple[Smoothing, NeighborModel | None]:
    """Fit the Gaussian and the neighbor model to the patches of a table."""
    return fit_smoothing(
        _calibrated(table, temperature),
        table["label"].to_numpy(),
        table["slide"].to_numpy(),
        table[["row", "col"]].to_numpy(np.int32),
        patch_um=_patch_um(pack),
        choose=best_f1_threshold,
    )


def _calibrated(table: pd.DataFrame, temperature: float) -> NDArray[np.float64]:
    """Return calibrated log odds, rounded and limited like those of a map."""
    return log_odds(expit(table["log_odds"].to_numpy() / temperature).astype(np.float32))


def _patch_um(pack: Pack) -> float:
    return pack.info.patch_px * pack.info.mpp


def smoothing_table(pack: Pack, table: pd.DataFrame, natural: pd.DataFrame) -> list[str]:
    """Return a Markdown table: AUC, AP and Dice of each complete patient, with each smoothing."""
    whole, temperature = complete_patients(table), temperature_of(natural)
    probability = expit(natural["log_odds"].to_numpy() / temperature).astype(np.float32)
    threshold = best_f1_threshold(natural["label"].to_numpy(), probability)
    methods = ("raw", "Gaussian", "neighbor model")
    lines = [f"| patient | {' | '.join(methods)} |", "|---|---|---|---|"]
    values: list[list[tuple[float, float, float]]] = []
    for patient in sorted(set(whole["patient"])):
        own, others = (whole[(whole["patient"] == patient) == is_own] for is_own in (True, False))
        gaussian, neighbors = smoothing_of(pack, others, temperature)
        if neighbors is None:
            return ["Too few patients are complete to fit a neighbor model."]
        odds, row_col = _calibrated(own, temperature), own[["row", "col"]].to_numpy(np.int32)
        smoothed = [
            (odds, threshold),
            *(
                (each.smooth(odds, row_col, cell_um=_patch_um(pack)), each.threshold)
                for each in (gaussian, neighbors)
            ),
        ]
        values.append([_patient_metrics(own, *each) for each in smoothed])
        cells = [" / ".join(f"{value:.3f}" for value in each) for each in values[-1]]
        lines.append(f"| {patient} | {' | '.join(cells)} |")
    array = np.array(values)  # (patients, methods, metrics)
    means = [" / ".join(f"{value:.3f}" for value in each) for each in array.mean(axis=0)]
    lines.append(f"| mean | {' | '.join(means)} |")
    for a, b in ((0, 1), (0, 2), (1, 2)):
        difference = array[:, b] - array[:, a]
        texts = [
            f"{each.mean():+.3f} ({sum(each > 0)} of {len(each)} better)" for each in difference.T
        ]
        lines.append(f"| {methods[b]} - {methods[a]} | {' | '.join(texts)} |")
    return lines


def _patient_metrics(
    table: pd.DataFrame, odds: NDArray[np.float64], threshold: float
) -> tuple[float, float, float]:
    """Return AUC, average precision and Dice of one patient."""
    values = all_metrics(
        table["label"].to_numpy(), expit(odds).astype(np.float32), threshold=threshold
    )
    return values["auc"], values["average_precision"], values["f1"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("natural", type=Path)
    parser.add_argument("recipes", type=Path, nargs="+")
    main(**vars(parser.parse_args()))
