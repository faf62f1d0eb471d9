"""Intervals by bootstrap over patients.

Patches of one patient are alike, so the patient is what is drawn again: an interval over patches
would be far too narrow. A resample draws as many patients as there are, with replacement; here it
is the weight of each patient, how often it was drawn, so that all resamples are computed at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import NUM_RESAMPLES
from wsi_idc.core.metric_table import METRICS
from wsi_idc.metrics.classification import (
    ECE_BINS,
    ece_bin,
    safe_divide,
    threshold_metrics,
)

_PERCENTILES = (2.5, 97.5)
# Values of a block of resamples at a time: as much as a processor's cache holds of them.
_VALUES_AT_A_TIME = 2_000_000
_GRID = np.linspace(0, 1, 101)


def resample_patients(
    num_patients: int, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> NDArray[np.int64]:
    """Return how often each resample draws each patient, shape (num_resamples, num_patients)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num_patients, size=(num_resamples, num_patients))
    flat = drawn + num_patients * np.arange(num_resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=num_resamples * num_patients)
    return counts.reshape(num_resamples, num_patients)


def interval(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric's values over resamples.

    A resample in which the metric has no value is passed over; NaN where none has one.
    """
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return np.nan, np.nan
    low, high = np.percentile(known, _PERCENTILES)
    return float(low), float(high)


def resampled_metrics(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    code: NDArray[np.integer],
    *,
    threshold: float,
    weights: NDArray[np.integer],
) -> dict[str, NDArray[np.float64]]:
    """Return each metric of ``all_metrics`` in each resample, NaN where it has no value.

    Args:
        label: 0 or 1, shape (N,).
        probability: Of IDC, shape (N,).
        code: Each patch's patient, a column of ``weights``, shape (N,).
        threshold: Probability from which a patch is called IDC.
        weights: How often each patient is drawn, shape (R, P).
    """
    num_patients = weights.shape[1]

    def a_patient(values: NDArray) -> NDArray[np.float64]:
        return np.bincount(code, values, minlength=num_patients).astype(np.float64)  # (P,)

    truth, called = label == 1, probability >= threshold
    cells = (truth & called, ~truth & called, ~truth & ~called, truth & ~called)
    num_patches = weights @ a_patient(np.ones(len(label)))
    squared = a_patient((probability.astype(np.float64) - label) ** 2)
    auc, average_precision = _ranking_metrics(label, probability, code, weights)
    found = {
        "auc": auc,
        "average_precision": average_precision,
        **threshold_metrics(*(weights @ a_patient(cell) for cell in cells)),
        "brier": safe_divide(weights @ squared, num_patches),
        "ece": safe_divide(_gap(label, probability, code, weights), num_patches),
    }
    return {name: found[name] for name in METRICS}


def _gap(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Return the calibration error times the number of patches in each resample, shape (R,)."""
    place = code.astype(np.int64) * ECE_BINS + ece_bin(probability)
    gap = np.bincount(
        place, probability.astype(np.float64) - label, minlength=weights.shape[1] * ECE_BINS
    )
    return np.abs(weights @ gap.reshape(-1, ECE_BINS)).sum(axis=1)


def _ranking_metrics(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AUC and average precision in each resample, as scikit-learn with sample weights.

    Both are sums over the positives of what ranks above each. How much of each patient does is
    the same in every resample, so one product of matrices has it for all of them.
    """
    num_patients = weights.shape[1]
    positive, negative = (
        [np.sort(probability[(label == kind) & (code == one)]) for one in range(num_patients)]
        for kind in (1, 0)
    )
    # Whole numbers below 2**24: exact in single precision.
    drawn = weights.astype(np.float32)  # (R, P)
    num_positive, num_negative = (
        weights @ [len(one) for one in kind] for kind in (positive, negative)
    )
    pairs, area = np.zeros(len(weights)), np.zeros(len(weights))
    at_a_time = max(1, _VALUES_AT_A_TIME // len(weights))
    rows = np.flatnonzero(label == 1)
    for start in range(0, len(rows), at_a_time):
        some = rows[start : start + at_a_time]
        at = probability[some]
        own = drawn[:, code[some]]  # (R, K)
        num_above = drawn @ _num_from(negative, at)
        num_equal = num_above - drawn @ _num_from(negative, at, side="right")
        num_true = drawn @ _num_from(positive, at)
        # A pair counts where the positive ranks above the negative, and half where they are equal.
        below = num_negative[:, None] - num_above + num_equal / 2
        pairs += (own * below).sum(axis=1)
        precision = num_true / np.maximum(num_true + num_above, 1)
        area += (own * precision).sum(axis=1, dtype=np.float64)
    has_both = num_positive * num_negative
    return safe_divide(pairs, has_both), safe_divide(area, np.where(has_both > 0, num_positive, 0))


def _num_from(
    ranked: list[NDArray[np.floating]],
    at: NDArray[np.floating],
    *,
    side: Literal["left", "right"] = "left",
) -> NDArray[np.float32]:
    """Return how many of each patient's sorted values are at least ``at`` (right: above it).

    Shape (P, K) of P patients and K values in ``at``.
    """
    counts = [len(values) - np.searchsorted(values, at, side=side) for values in ranked]
    return np.stack(counts).astype(np.float32)


def _cumulated(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    code: NDArray[np.integer],
    weights: NDArray[np.integer],
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield, for some resamples at a time, the positives and negatives down to each probability.

    From the largest probability to the smallest, equal ones together; each shape (r, K).
    """
    order = np.argsort(-probability, kind="stable")
    ordered = probability[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # (K,)
    code, is_idc = code[order], (label[order] == 1).astype(np.float64)
    at_a_time = max(1, _VALUES_AT_A_TIME // len(order))
    for start in range(0, len(weights), at_a_time):
        weight = weights[start : start + at_a_time].astype(np.float64)[:, code]  # (r, N)
        both = np.cumsum(weight, axis=1)[:, last]
        positive = np.cumsum(weight * is_idc, axis=1)[:, last]
        yield positive, both - positive


@dataclass(frozen=True)
class Band:
    """A curve and its 95 % band over resamples of patients.

    Attributes:
        x: Where, shape (K,).
        y: Of all patients as they are, shape (K,).
        low, high: Of the band, shape (K,), NaN where there is none.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def roc_and_pr_bands(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    code: NDArray[np.integer],
    *,
    weights: NDArray[np.integer],
) -> tuple[Band, Band] | None:
    """Return the ROC curve (x: 1 - specificity) and the PR curve (x: recall), each with its band.

    None where there is only one class.
    """
    num_patients = weights.shape[1]
    once = np.ones((1, num_patients), np.int64)
    roc, precision = [], []
    for positive, negative in _cumulated(label, probability, code, np.vstack([once, weights])):
        for above, beside in zip(positive, negative, strict=True):
            if above[-1] and beside[-1]:
                recall = above / above[-1]
                roc.append(_at_or_before(_GRID, beside / beside[-1], recall))
                precision.append(_best_from(_GRID, recall, safe_divide(above, above + beside)))
            elif not roc:
                return None
    return _band(np.stack(roc)), _band(np.stack(precision))


def _at_or_before(
    grid: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the y of the line through (0, 0) and the points, at each x of the grid."""
    place = np.concatenate([[0.0], x])
    value = np.concatenate([[0.0], y])
    last = np.searchsorted(place, grid, side="right") - 1
    after = np.minimum(last + 1, len(place) - 1)
    width = place[after] - place[last]
    part = np.divide(grid - place[last], width, out=np.zeros_like(grid), where=width > 0)
    return value[last] + part * (value[after] - value[last])


def _best_from(
    grid: NDArray[np.float64], recall: NDArray[np.float64], precision: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the precision at the first threshold that reaches each recall of the grid."""
    # A recall of 0 stands for that of the surest IDC.
    first = np.searchsorted(recall, np.maximum(grid - 1e-12, np.finfo(float).tiny))
    return precision[np.minimum(first, len(precision) - 1)]


def _band(curves: NDArray[np.float64]) -> Band:
    """Make a band of curves of shape (1 + R, K), that of all patients first."""
    if len(curves) == 1:
        none = np.full(len(_GRID), np.nan)
        return Band(_GRID, curves[0], none, none)
    low, high = np.percentile(curves[1:], _PERCENTILES, axis=0)
    return Band(_GRID, curves[0], low, high)
