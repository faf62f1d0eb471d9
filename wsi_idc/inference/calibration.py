"""Temperature, threshold and smoothing, set on val patients only."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from scipy.special import logit as log_odds
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_idc.core.constants import IDC
from wsi_idc.geometry.grid import smooth
from wsi_idc.models.checkpoint import Smoothing

_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)
# Neighbours further off tell of the patient rather than of the place.
_MAX_SIGMA_CELLS = 2.0
# A probability of exactly 0 or 1 would outweigh any number of neighbours.
_SUREST = 1e-6


@dataclass(frozen=True)
class Calibration:
    """What turns a network's logits into probabilities and calls.

    Attributes:
        temperature: Divides the logits.
        threshold: Probability of IDC from which a patch is called IDC.
        smoothing: For probabilities smoothed by the neighbours.
    """

    temperature: float
    threshold: float
    smoothing: Smoothing


def calibrate(
    logit: NDArray[np.floating],
    label: NDArray[np.integer],
    patient: NDArray,
    row_col: NDArray[np.int32],
    *,
    patch_um: float,
    threshold_by: str = "f1",
    target_sensitivity: float = 0.0,
) -> Calibration:
    """Return what suits patches of val patients best.

    Args:
        logit: Shape (N, num_classes).
        label: 0 or 1, shape (N,).
        patient: Of each patch, shape (N,).
        row_col: Cells on the patient's grid, shape (N, 2).
        patch_um: Side of a patch.
        threshold_by: Criterion of the threshold, "f1" or "youden".
        target_sensitivity: Sensitivity that the threshold must reach instead; 0 uses
            ``threshold_by``.
    """
    temperature = fit_temperature(logit, label)
    probability = idc_probability(logit, temperature=temperature)
    choose = partial(
        choose_threshold, label, threshold_by=threshold_by, target_sensitivity=target_sensitivity
    )
    threshold = choose(probability)

    def smoothed(sigma_cells: float) -> NDArray[np.float64]:
        return _smoothed_log_odds(probability, patient, row_col, sigma_cells=sigma_cells)

    def loss(sigma_cells: float) -> float:
        pairs = _as_logits(smoothed(sigma_cells))
        return _cross_entropy(pairs / fit_temperature(pairs, label), label)

    found = minimize_scalar(loss, bounds=(0, _MAX_SIGMA_CELLS), options={"xatol": 0.01})
    odds = smoothed(float(found.x))
    of_smoothed = fit_temperature(_as_logits(odds), label)
    smoothing = Smoothing(
        sigma_um=float(found.x) * patch_um,
        temperature=of_smoothed,
        threshold=choose(expit(odds / of_smoothed).astype(np.float32)),
    )
    return Calibration(temperature, threshold, smoothing)


def idc_probability(logit: NDArray[np.floating], *, temperature: float) -> NDArray[np.float32]:
    """Return the calibrated probability of IDC, shape (N,), of logits (N, num_classes)."""
    return softmax(logit.astype(np.float64) / temperature, axis=1)[:, IDC].astype(np.float32)


def smoothed_probability(
    probability: NDArray[np.floating],
    patient: NDArray,
    row_col: NDArray[np.int32],
    *,
    smoothing: Smoothing,
    patch_um: float,
) -> NDArray[np.float32]:
    """Return the probability of IDC as the neighbours on a patient's grid see it, shape (N,).

    The log odds are averaged by a Gaussian of the distance and sharpened by a temperature.

    Args:
        probability: Of IDC, shape (N,).
        patient: Of each patch, shape (N,); patches of one do not touch another's.
        row_col: Cells on the patient's grid, shape (N, 2).
        smoothing: How far and how sharp.
        patch_um: Side of a cell.
    """
    odds = _smoothed_log_odds(
        probability, patient, row_col, sigma_cells=smoothing.sigma_um / patch_um
    )
    return expit(odds / smoothing.temperature).astype(np.float32)


def _smoothed_log_odds(
    probability: NDArray[np.floating],
    patient: NDArray,
    row_col: NDArray[np.int32],
    *,
    sigma_cells: float,
) -> NDArray[np.float64]:
    odds = log_odds(np.clip(probability.astype(np.float64), _SUREST, 1 - _SUREST))
    _, code = np.unique(patient, return_inverse=True)
    for rows in np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1]):
        odds[rows] = smooth(odds[rows], row_col[rows], sigma=sigma_cells)
    return odds


def _as_logits(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits (N, 2) of log odds (N,)."""
    return np.stack([np.zeros_like(odds), odds], axis=1)


def fit_temperature(logit: NDArray[np.floating], label: NDArray[np.integer]) -> float:
    """Return the temperature with the least cross-entropy (Guo et al. 2017, section 4.2)."""
    logit = logit.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return _cross_entropy(logit / np.exp(log_temperature), label)

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded")
    return float(np.exp(found.x))


def _cross_entropy(logit: NDArray[np.float64], label: NDArray[np.integer]) -> float:
    return float(-log_softmax(logit, axis=1)[np.arange(len(label)), label].mean())


def choose_threshold(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    *,
    threshold_by: str,
    target_sensitivity: float,
) -> float:
    """Return the threshold at or above which a patch is called IDC.

    Args:
        label: 0 or 1, shape (N,).
        probability: Probability of IDC, shape (N,).
        threshold_by: Criterion, "f1" or "youden".
        target_sensitivity: Sensitivity to reach instead; 0 uses ``threshold_by``.
    """
    if target_sensitivity:
        return sensitivity_threshold(label, probability, target=target_sensitivity)
    criteria = {"f1": best_f1_threshold, "youden": best_youden_threshold}
    return criteria[threshold_by](label, probability)


def best_f1_threshold(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the threshold, called IDC at or above, with the largest F1."""
    precision, recall, thresholds = precision_recall_curve(label, probability)
    total = np.maximum(precision + recall, np.finfo(float).tiny)
    return _below(thresholds, int(np.argmax((2 * precision * recall / total)[:-1])))


def best_youden_threshold(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the threshold with the largest sensitivity plus specificity (Youden 1950)."""
    negatives, positives, thresholds = roc_curve(label, probability, drop_intermediate=False)
    best = int(np.argmax((positives - negatives)[1:]))
    return _below(thresholds[:0:-1], len(thresholds) - 2 - best)


def sensitivity_threshold(
    label: NDArray[np.integer], probability: NDArray[np.floating], *, target: float
) -> float:
    """Return the largest threshold at which at least ``target`` of the IDC is called."""
    of_idc = np.sort(probability[label == IDC])
    num_missed = int((1 - target) * len(of_idc) + 1e-9)  # 0.1 * 10 must be 1, not 0.99...
    lowest = of_idc[min(num_missed, len(of_idc) - 1)]
    values = np.unique(probability)
    return _below(values, int(np.searchsorted(values, lowest)))


def _below(ascending: NDArray[np.floating], place: int) -> float:
    """Return a threshold between a probability and the next smaller one.

    On a probability, its call would hang on the last digit.
    """
    below = float(ascending[place - 1]) if place > 0 else 0.0
    return (float(ascending[place]) + below) / 2
