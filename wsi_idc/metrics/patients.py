"""Metrics of each patient's tumor region."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.geometry.grid import INTERIOR, border_distance
from wsi_idc.metrics import classification as metrics
from wsi_idc.metrics.bootstrap import interval

DISTANCES = range(INTERIOR + 1)
# 95 % of a normal distribution is within this number of standard deviations of the mean (Bland &
# Altman 1986).
_LIMITS_OF_AGREEMENT = 1.96
_BORDER_COLUMNS = ("patches", "area_true", "area_predicted", "area_bias", "auc", "dice")


def border_distances(
    label: NDArray[np.integer], slide: NDArray[np.integer], row_col: NDArray[np.int32]
) -> NDArray[np.int8]:
    """Compute the ``border_distance`` of each patch on the grid of its slide, shape (N,)."""
    distance = np.empty(len(label), np.int8)
    for code in np.unique(slide):
        rows = np.flatnonzero(slide == code)
        distance[rows] = border_distance(label[rows], row_col[rows])
    return distance


def patient_table(
    predictions: pd.DataFrame, column: str, *, threshold: float, keys: Sequence[str] = ("patient",)
) -> pd.DataFrame:
    """Compute one row of metrics for each patient; an undefined metric is NaN.

    If ``keys`` is ("patient", "slide"), there is one row for each slide of a patient.

    The columns are the names in ``keys``, then patches, area_true, area_predicted, area_bias, auc,
    dice, sensitivity, specificity, ppv. Areas are fractions of the patches. Each column from
    patches to dice also exists for each border distance, such as ``border0_dice`` for distance 0.

    ``predictions`` has one row per patch and the columns patient, label (0 or 1), border_distance.
    ``column`` is the name of the column with the probability of IDC. A patch is called IDC if this
    probability is at least ``threshold``.
    """
    rows = []
    for names, part in predictions.groupby(list(keys)):
        row = {**dict(zip(keys, names, strict=True)), **_region(part, column, threshold)}
        for distance in DISTANCES:
            values = _region(part[part["border_distance"] == distance], column, threshold)
            row |= {f"border{distance}_{name}": values[name] for name in _BORDER_COLUMNS}
        rows.append(row)
    return pd.DataFrame(rows)


def _region(part: pd.DataFrame, column: str, threshold: float) -> dict[str, float]:
    label, probability = part["label"].to_numpy(), part[column].to_numpy()
    values = metrics.all_metrics(label, probability, threshold=threshold)
    predicted = float((probability >= threshold).mean()) if len(part) else math.nan
    return {
        "patches": len(part),
        "area_true": values["prevalence"],
        "area_predicted": predicted,
        "area_bias": predicted - values["prevalence"],
        "auc": values["auc"],
        "dice": values["f1"],  # F1 equals the Dice of called patches and IDC patches
        **{name: values[name] for name in ("sensitivity", "specificity", "ppv")},
    }


def summary(patients: pd.DataFrame, weights: NDArray[np.integer]) -> dict[str, dict[str, float]]:
    """Summarize the distribution of auc, dice and area_bias in the result of ``patient_table``.

    Each patient counts once, even if other patients have more patches. A metric that is NaN for
    all patients is left out.

    Args:
        patients: Result of ``patient_table``, with P rows.
        weights: Weight of each patient in each resample, shape (R, P), for the intervals.

    Returns:
        For each metric: number of patients with a defined value ("patients"), mean, median, minimum
        ("least"), maximum ("largest"), and 95 % interval of the mean ("low", "high"). area_bias
        also has the limits of agreement (Bland & Altman 1986) and the mean absolute bias.
    """
    result = {}
    for name in ("auc", "dice", "area_bias"):
        column: NDArray[np.float64] = patients[name].to_numpy(float)
        is_known = ~np.isnan(column)
        values, drawn = column[is_known], weights[:, is_known]
        if not len(values):
            continue
        means = metrics.safe_divide(drawn @ values, drawn.sum(axis=1).astype(np.float64))
        low, high = interval(means) if len(values) > 1 else (math.nan, math.nan)
        result[name] = {
            "patients": len(values),
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "least": float(values.min()),
            "largest": float(values.max()),
            "low": low,
            "high": high,
        }
        if name == "area_bias" and len(values) > 1:
            spread = _LIMITS_OF_AGREEMENT * values.std(ddof=1)
            result[name] |= {
                "agreement_low": float(values.mean() - spread),
                "agreement_high": float(values.mean() + spread),
                "mean_absolute": float(np.abs(values).mean()),
            }
    return result
