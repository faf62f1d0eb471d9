"""Confidence intervals by bootstrap over patients.

Patches of one patient are similar, so an interval from resampled patches would be far too narrow.
Therefore patients are resampled: a resample of n patients is n random draws with replacement. The
weight of a patient in a resample is the number of times that the patient is drawn. The weights of
all resamples form one matrix, so that all resamples are computed at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import NUM_RESAMPLES
from wsi_idc.core.metric_table import METRICS
from wsi_idc.metrics.classification import ECE_BINS, ece_bin, safe_divide, threshold_metrics

_Ints = NDArray[np.integer]
_Floats = NDArray[np.floating]
_PERCENTILES = (2.5, 97.5)
# Number of values in a block; a block should fit into the cache of a processor.
_BLOCK_VALUES = 2_000_000
_GRID = np.linspace(0, 1, 101)
# With fewer patients, a percentile interval is too narrow. If two predictors are equally good, the
# interval of their difference should exclude 0 in 5 % of the comparisons. With 5 patients, it
# excludes 0 in 15 %, and with 10 patients in 10 %.
MIN_PATIENTS = 10
FEW_PATIENTS = f"with fewer than {MIN_PATIENTS} patients, the 95 % intervals are too narrow"


def resample_patients(
    num_patients: int, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> NDArray[np.int64]:
    """Return each patient's weight in random resamples, shape (num_resamples, num_patients)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num_patients, size=(num_resamples, num_patients))
    flat = drawn + num_patients * np.arange(num_resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=num_resamples * num_patients)
    return counts.reshape(num_resamples, num_patients)


def interval(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric's values over resamples.

    NaN values are left out. If all values are NaN, both ends of the interval are NaN.
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
    """Compute each metric of ``all_metrics`` in each resample; an undefined metric is NaN.

    Args:
        label: Label of each patch, 0 or 1, shape (N,).
        probability: Probability of IDC of each patch, shape (N,).
        code: Number of each patch's patient, shape (N,): the patient's column in ``weights``.
        threshold: A patch is called IDC if its probability is at least this value.
        weights: Weight of each patient in each resample, shape (R, P).
    """

    def resampled_sum(values: NDArray) -> NDArray[np.float64]:
        by_patient = np.bincount(code, values, minlength=weights.shape[1]).astype(np.float64)
        return weights @ by_patient

    truth, called = label == 1, probability >= threshold
    outcomes = (truth & called, ~truth & called, ~truth & ~called, truth & ~called)
    num_patches = resampled_sum(np.ones(len(label)))
    error = probability.astype(np.float64) - label
    # The sum of the errors in a bin is the bin's calibration error times its number of patches.
    patient_bin = code.astype(np.int64) * ECE_BINS + ece_bin(probability)
    bin_errors = np.bincount(patient_bin, error, minlength=weights.shape[1] * ECE_BINS)
    calibration = np.abs(weights @ bin_errors.reshape(-1, ECE_BINS)).sum(axis=1)
    auc, average_precision = _ranking_metrics(label, probability, code, weights)
    values = {
        "auc": auc,
        "average_precision": average_precision,
        **threshold_metrics(*(resampled_sum(outcome) for outcome in outcomes)),
        "brier": safe_divide(resampled_sum(error**2), num_patches),
        "ece": safe_divide(calibration, num_patches),
    }
    return {name: values[name] for name in METRICS}


def _ranking_metrics(
    label: _Ints, probability: _Floats, code: _Ints, weights: _Ints
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute AUC and average precision in each resample, as scikit-learn does with sample weights.

    For each positive patch, both metrics need the number of patches with a larger probability.
    These patches are counted separately for each patient. Then a matrix product of ``weights`` and
    the counts gives the number in each resample. ``resampled_metrics`` describes the arguments.
    """
    positive, negative = _sort_by_patient(label, probability, code, weights.shape[1])
    drawn = weights.astype(np.float32)  # (R, P); float32 is exact for integers below 2**24
    num_positive, num_negative = (weights @ [*map(len, ranks)] for ranks in (positive, negative))
    pairs, area = np.zeros(len(weights)), np.zeros(len(weights))
    block = max(1, _BLOCK_VALUES // len(weights))
    positive_rows = np.flatnonzero(label == 1)
    for start in range(0, len(positive_rows), block):
        rows = positive_rows[start : start + block]
        thresholds = probability[rows]
        own = drawn[:, code[rows]]  # (R, K)
        num_above = drawn @ _count_from(negative, thresholds)
        num_equal = num_above - drawn @ _count_from(negative, thresholds, side="right")
        num_true = drawn @ _count_from(positive, thresholds)
        # A pair of a positive and a negative patch counts 1 if the positive patch has the larger
        # probability, and 1/2 if both probabilities are equal.
        below = num_negative[:, None] - num_above + num_equal / 2
        pairs += (own * below).sum(axis=1)
        precision = num_true / np.maximum(num_true + num_above, 1)
        area += (own * precision).sum(axis=1, dtype=np.float64)
    num_pairs = num_positive * num_negative
    average_precision = safe_divide(area, np.where(num_pairs > 0, num_positive, 0))
    return safe_divide(pairs, num_pairs), average_precision


def _sort_by_patient(
    label: _Ints, probability: _Floats, code: _Ints, num_patients: int
) -> list[list[_Floats]]:
    """Return two lists with the sorted probabilities of each patient.

    The first list is for patches with label 1, and the second list for patches with label 0.
    """
    return [
        [np.sort(probability[(label == kind) & (code == number)]) for number in range(num_patients)]
        for kind in (1, 0)
    ]


def _count_from(
    ranked: list[_Floats], thresholds: _Floats, *, side: Literal["left", "right"] = "left"
) -> NDArray[np.float32]:
    """Count, for each patient and each threshold, the values that are at least the threshold.

    If ``side`` is "right", values that are equal to the threshold are not counted.

    Returns:
        Counts, shape (P, K), for P patients and K thresholds.
    """
    counts = [len(values) - np.searchsorted(values, thresholds, side=side) for values in ranked]
    return np.stack(counts).astype(np.float32)


@dataclass(frozen=True)
class Band:
    """A curve and its 95 % band over resamples of patients.

    Attributes:
        x: Positions on the x axis, shape (K,).
        y: Values of the curve without resampling, shape (K,).
        low, high: Bounds of the band, shape (K,); NaN without resamples.
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
    """Compute the ROC curve (x: 1 - specificity) and the PR curve (x: recall) with their bands.

    The arguments are those of ``resampled_metrics``. If a class has no patches, return None.
    """
    all_once = np.ones((1, weights.shape[1]), np.int64)
    roc, pr = [], []
    weights = np.vstack([all_once, weights])
    for num_true, num_false in _curve_counts(label, probability, code, weights):
        if num_true[-1] and num_false[-1]:
            recall, false_rate = num_true / num_true[-1], num_false / num_false[-1]
            roc.append(np.interp(_GRID, np.append(0, false_rate), np.append(0, recall)))
            # For each recall, take the precision at the first threshold that reaches this recall.
            # For recall 0, take the precision at the largest probability of an IDC patch.
            first = np.searchsorted(recall, np.maximum(_GRID - 1e-12, np.finfo(float).tiny))
            precision = safe_divide(num_true, num_true + num_false)
            pr.append(precision[np.minimum(first, len(precision) - 1)])
        elif not roc:
            return None
    return _band(roc), _band(pr)


def _curve_counts(
    label: _Ints, probability: _Floats, code: _Ints, weights: _Ints
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield, for each resample, two arrays: the true and the false positives at each threshold.

    The thresholds are the different probabilities, from the largest to the smallest.
    """
    thresholds = np.unique(probability)[::-1]  # the largest first
    counts = [
        _count_from(ranked, thresholds)  # (P, K)
        for ranked in _sort_by_patient(label, probability, code, weights.shape[1])
    ]
    block = max(1, _BLOCK_VALUES // len(thresholds))
    for start in range(0, len(weights), block):
        drawn = weights[start : start + block].astype(np.float32)
        yield from zip(*((drawn @ count).astype(np.float64) for count in counts), strict=True)


def _band(curves: list[NDArray[np.float64]]) -> Band:
    """Build a band from curves.

    The first curve is without resampling. Each of the other curves belongs to one resample.
    """
    missing = np.full((2, len(_GRID)), np.nan)
    low, high = np.percentile(curves[1:], _PERCENTILES, axis=0) if len(curves) > 1 else missing
    return Band(_GRID, curves[0], low, high)
