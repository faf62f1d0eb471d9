"""Metrics of patch predictions, with intervals by bootstrap over patients.

Patches of one patient are alike, so the patient is what is drawn again: an interval over patches
would be far too narrow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as skm

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Confusion:
    """Counts of patches by truth and call."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int


def confusion(
    label: NDArray[np.integer], probability: NDArray[np.floating], *, threshold: float
) -> Confusion:
    """Count calls of IDC (probability at least ``threshold``) against labels 0 and 1."""
    truth, called = label == 1, probability >= threshold
    return Confusion(
        true_positive=int((truth & called).sum()),
        false_positive=int((~truth & called).sum()),
        true_negative=int((~truth & ~called).sum()),
        false_negative=int((truth & ~called).sum()),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def threshold_metrics(counts: Confusion) -> dict[str, float]:
    """Return the metrics that follow from the four counts; NaN where one has no denominator."""
    tp, fp, tn, fn = (
        counts.true_positive,
        counts.false_positive,
        counts.true_negative,
        counts.false_negative,
    )
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def auc(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    weight: NDArray[np.floating] | None = None,
) -> float:
    """Return the area under the ROC curve; NaN where only one class has weight."""
    if not _has_both(label, weight):
        return math.nan
    return float(skm.roc_auc_score(label, probability, sample_weight=weight))


def average_precision(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    weight: NDArray[np.floating] | None = None,
) -> float:
    """Return the average precision of IDC; NaN where only one class has weight."""
    if not _has_both(label, weight):
        return math.nan
    return float(skm.average_precision_score(label, probability, sample_weight=weight))


def _has_both(label: NDArray[np.integer], weight: NDArray[np.floating] | None) -> bool:
    seen = label if weight is None else label[weight > 0]
    return bool((seen == 0).any() and (seen == 1).any())


def all_metrics(
    label: NDArray[np.integer], probability: NDArray[np.floating], *, threshold: float
) -> dict[str, float]:
    """Return every metric of patches with labels 0 and 1."""
    return {
        "auc": auc(label, probability),
        "average_precision": average_precision(label, probability),
        **threshold_metrics(confusion(label, probability, threshold=threshold)),
        "prevalence": _share(int((label == 1).sum()), len(label)),
    }


def patient_bootstrap(
    metric: Callable[[NDArray[np.integer], NDArray[np.floating], NDArray[np.floating]], float],
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    patient: NDArray[np.integer],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric under resampling of patients.

    Args:
        metric: Labels, probabilities and weights, each of shape (N,), to a number.
        label: 0 or 1, shape (N,).
        probability: Of IDC, shape (N,).
        patient: Code of each patch's patient, shape (N,).
        seed: Of the resampling.
        num_resamples: How often to draw as many patients as there are, with replacement.
    """
    _, code = np.unique(patient, return_inverse=True)
    num_patients = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(num_patients, size=num_patients), minlength=num_patients)
        values.append(metric(label, probability, drawn[code].astype(np.float64)))
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
