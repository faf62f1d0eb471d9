"""Compute metrics from predictions and labels of patches; docs/metrics.md has the formulas.

A metric can be undefined, for example if one class has no patch or no patch is called IDC. An
undefined metric is NaN, never 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.metric_table import METRICS

ECE_BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix that counts patches; IDC is the positive class."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int


def confusion(
    label: NDArray[np.integer], probability: NDArray[np.floating], *, threshold: float
) -> Confusion:
    """Return the confusion matrix; a patch is called IDC if its probability is >= ``threshold``."""
    truth, called = label == 1, probability >= threshold
    return Confusion(
        true_positive=int((truth & called).sum()),
        false_positive=int((~truth & called).sum()),
        true_negative=int((~truth & ~called).sum()),
        false_negative=int((truth & ~called).sum()),
    )


def threshold_metrics(tp: Any, fp: Any, tn: Any, fn: Any) -> dict[str, Any]:
    """Compute the metrics of a confusion matrix; an undefined metric is NaN.

    The arguments are counts of patches: numbers, or arrays of the same shape.
    """
    tp, fp, tn, fn = (np.asarray(count, np.float64) for count in (tp, fp, tn, fn))
    sensitivity, specificity = safe_divide(tp, tp + fn), safe_divide(tn, tn + fp)
    mcc_scale = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": safe_divide(2 * tp, 2 * tp + fp + fn),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": safe_divide(tp, tp + fp),
        "npv": safe_divide(tn, tn + fn),
        "accuracy": safe_divide(tp + tn, tp + fp + tn + fn),
        "mcc": safe_divide(tp * tn - fp * fn, mcc_scale),
        "prevalence": safe_divide(tp + fn, tp + fp + tn + fn),
    }


def safe_divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``part / whole``; NaN where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)


def auc(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the area under the ROC curve; NaN if all labels are equal.

    The area is the fraction of pairs of an IDC patch and another patch in which the IDC patch has
    the larger probability; a pair with equal probabilities counts 1/2.
    """
    # scikit-learn takes a second to import, and a millisecond for each map of a table.
    if not _has_both(label):
        return math.nan
    positive, negative = probability[label == 1], np.sort(probability[label == 0])
    num_below = np.searchsorted(negative, positive, "left")
    num_not_above = np.searchsorted(negative, positive, "right")
    return float((num_below + num_not_above).sum() / (2 * len(positive) * len(negative)))


def average_precision(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the average precision of IDC; NaN if all labels are equal."""
    from sklearn.metrics import average_precision_score  # takes a second to import

    return float(average_precision_score(label, probability)) if _has_both(label) else math.nan


def _has_both(label: NDArray[np.integer]) -> bool:
    return bool((label == 0).any() and (label == 1).any())


def ece_bin(probability: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the index of the bin of each probability, shape (N,); bins have equal width."""
    return np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def ece(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the expected calibration error of the probability of IDC (Guo et al. 2017, eq. 3).

    The error of a bin is the absolute difference between the mean probability and the fraction of
    IDC in this bin. The result is the mean error, weighted by the number of patches in each bin.
    """
    if len(label) == 0:
        return math.nan
    error = probability.astype(np.float64) - label
    return float(np.abs(np.bincount(ece_bin(probability), error)).sum() / len(label))


def brier(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the mean squared difference between the probability of IDC and the label."""
    return float(np.mean((probability.astype(np.float64) - label) ** 2)) if len(label) else math.nan


def all_metrics(
    label: NDArray[np.integer], probability: NDArray[np.floating], *, threshold: float
) -> dict[str, float]:
    """Compute every metric of patches with labels 0 and 1; both arrays have the shape (N,).

    A patch is called IDC if its probability is at least ``threshold``.

    Raises:
        ValueError: A label is not 0 or 1, or a probability is not within 0..1.
    """
    check_predictions(label, probability)
    counts = vars(confusion(label, probability, threshold=threshold))
    values = {
        "auc": auc(label, probability),
        "average_precision": average_precision(label, probability),
        **{name: float(value) for name, value in threshold_metrics(*counts.values()).items()},
        "brier": brier(label, probability),
        "ece": ece(label, probability),
    }
    return {name: values[name] for name in METRICS}


def check_predictions(label: NDArray[np.integer], probability: NDArray[np.floating]) -> None:
    """Check the labels and the probabilities of patches.

    Raises:
        ValueError: A label is not 0 or 1, a probability is not within 0..1, or the two arrays have
            different lengths.
    """
    if len(label) != len(probability):
        raise ValueError(f"{len(label)} labels, but {len(probability)} probabilities")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("a label is not 0 or 1")
    if not ((probability >= 0) & (probability <= 1)).all():  # a NaN is refused too
        raise ValueError("a probability is not within 0..1")


def nan_to_none(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a copy of ``values`` with None instead of NaN, because JSON has no NaN."""
    return {
        str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert each row of a table to a dictionary; NaN becomes None, because JSON has no NaN."""
    return [nan_to_none(row) for row in table.to_dict("records")]
