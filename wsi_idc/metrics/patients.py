"""How well each patient's tumour region is found."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.geometry.grid import INTERIOR, border_distance
from wsi_idc.metrics import classification as metrics
from wsi_idc.metrics.bootstrap import interval

DISTANCES = range(INTERIOR + 1)
# Of a normal distribution, 95 % lie within so many standard deviations (Bland & Altman 1986).
_LIMITS_OF_AGREEMENT = 1.96


def border_distances(
    label: NDArray[np.integer], patient: NDArray, row_col: NDArray[np.int32]
) -> NDArray[np.int8]:
    """Return each patch's distance to its patient's label border, shape (N,), as on the grid."""
    distance = np.empty(len(label), np.int8)
    for one in np.unique(patient):
        rows = np.flatnonzero(patient == one)
        distance[rows] = border_distance(label[rows], row_col[rows])
    return distance


def patient_table(predictions: pd.DataFrame, column: str, *, threshold: float) -> pd.DataFrame:
    """Return one row a patient; what has no value is NaN.

    Columns: patient, patches, area_true, area_predicted, area_bias (fractions of the patient's
    patches), auc, dice, sensitivity, specificity, ppv; then the same but for the last three of
    the patches at each distance from the label border, as ``border0_dice``.

    Args:
        predictions: Columns patient, label (0 or 1), border_distance and ``column``.
        column: The probability of IDC that is judged.
        threshold: From which a patch is called IDC.
    """
    rows = []
    for patient, part in predictions.groupby("patient"):
        row = {"patient": patient, **_region(part, column, threshold)}
        for distance in DISTANCES:
            some = part[part["border_distance"] == distance]
            found = _region(some, column, threshold)
            names = ("patches", "area_true", "area_predicted", "area_bias", "auc", "dice")
            row |= {f"border{distance}_{name}": found[name] for name in names}
        rows.append(row)
    return pd.DataFrame(rows)


def _region(part: pd.DataFrame, column: str, threshold: float) -> dict[str, float]:
    label, probability = part["label"].to_numpy(), part[column].to_numpy()
    found = metrics.all_metrics(label, probability, threshold=threshold)
    predicted = float((probability >= threshold).mean()) if len(part) else math.nan
    return {
        "patches": len(part),
        "area_true": found["prevalence"],
        "area_predicted": predicted,
        "area_bias": predicted - found["prevalence"],
        "auc": found["auc"],
        # Of two sets of patches, the called and the true ones, Dice is the F1.
        "dice": found["f1"],
        **{name: found[name] for name in ("sensitivity", "specificity", "ppv")},
    }


def summary(patients: pd.DataFrame, weights: NDArray[np.integer]) -> dict[str, dict[str, float]]:
    """Return how the patients' own figures are spread; each patient counts as one.

    Args:
        patients: As ``patient_table`` gives them.
        weights: How often each resample draws each patient, shape (R, P).

    Returns:
        Of auc, dice and area_bias: number of patients that have it, mean, 95 % interval of the
        mean, median, least and largest; of the bias also the limits of agreement (Bland & Altman
        1986) and the mean absolute one. A figure without a value is left out.
    """
    found = {}
    for name in ("auc", "dice", "area_bias"):
        values: NDArray[np.float64] = patients[name].to_numpy(float)
        known = values[~np.isnan(values)]
        if not len(known):
            continue
        found[name] = _spread(values, weights)
        if name == "area_bias" and len(known) > 1:
            around = _LIMITS_OF_AGREEMENT * known.std(ddof=1)
            found[name] |= {
                "agreement_low": float(known.mean() - around),
                "agreement_high": float(known.mean() + around),
                "mean_absolute": float(np.abs(known).mean()),
            }
    return found


def _spread(values: NDArray[np.float64], weights: NDArray[np.integer]) -> dict[str, float]:
    known = ~np.isnan(values)
    drawn = weights[:, known]
    means = metrics.safe_divide(drawn @ values[known], drawn.sum(axis=1).astype(np.float64))
    low, high = interval(means) if known.sum() > 1 else (math.nan, math.nan)
    statistics: dict[str, Callable[[NDArray[np.float64]], float]] = {
        "mean": np.mean,
        "median": np.median,
        "least": np.min,
        "largest": np.max,
    }
    return {
        "patients": int(known.sum()),
        **{name: float(function(values[known])) for name, function in statistics.items()},
        "low": low,
        "high": high,
    }
