"""Calibration: fit temperature, threshold and smoothing to the val patients."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_idc.core.constants import IDC
from wsi_idc.inference.neighbors import ChooseThreshold, complete_rows, fit_neighbor_model
from wsi_idc.inference.probability import idc_probability, log_odds
from wsi_idc.metrics.classification import ece
from wsi_idc.models.smoothing import NeighborModel, Smoothing, smooth_slides

logger = logging.getLogger(__name__)
_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)
_ECE_MARGIN = 0.001  # a smaller difference of two ECEs is not counted
_MAX_SIGMA_CELLS = 2.0  # a wider Gaussian would average over too much of the slide


@dataclass(frozen=True)
class Calibration:
    """Parameters that convert the logits of a network into probabilities and classes.

    Attributes:
        temperature: Divisor of the logits before the softmax.
        threshold: A patch is called IDC if its probability of IDC is at least this value.
        smoothing: Gaussian filter for the probabilities of neighboring patches.
        neighbors: Neighbor model; None if too few val slides are complete (``complete_rows``).
    """

    temperature: float
    threshold: float
    smoothing: Smoothing
    neighbors: NeighborModel | None


def calibrate(
    logit: NDArray[np.floating],
    label: NDArray[np.integer],
    slide: NDArray,
    row_col: NDArray[np.int32],
    *,
    patch_um: float,
    threshold_by: str = "f1",
    target_sensitivity: float = 0.0,
) -> Calibration:
    """Fit temperature, threshold and smoothing to the patches of val patients.

    Args:
        logit: Logits of each patch, shape (N, num_classes).
        label: Label of each patch, 0 or 1, shape (N,).
        slide: Slide of each patch, shape (N,).
        row_col: Row and column of each patch on the grid of its slide, shape (N, 2).
        patch_um: Side of a patch in um.
        threshold_by: Criterion for the threshold, "f1" or "youden".
        target_sensitivity: If this is not 0, ``threshold_by`` is ignored: the threshold is the
            largest threshold whose sensitivity is at least ``target_sensitivity``.
    """
    temperature = choose_temperature(logit, label)
    probability = idc_probability(logit, temperature=temperature)
    criteria = {"f1": best_f1_threshold, "youden": best_youden_threshold}
    choose: ChooseThreshold = criteria[threshold_by]
    if target_sensitivity:
        choose = partial(sensitivity_threshold, target=target_sensitivity)
    smoothing, neighbors = fit_smoothing(
        log_odds(probability), label, slide, row_col, patch_um=patch_um, choose=choose
    )
    return Calibration(temperature, choose(label, probability), smoothing, neighbors)


def fit_smoothing(
    odds: NDArray[np.float64],
    label: NDArray[np.integer],
    slide: NDArray,
    row_col: NDArray[np.int32],
    *,
    patch_um: float,
    choose: ChooseThreshold,
) -> tuple[Smoothing, NeighborModel | None]:
    """Fit a Gaussian filter and a neighbor model to calibrated log odds.

    ``choose`` is a function that chooses a threshold from labels and probabilities. The other
    arguments are those of ``calibrate``.
    """
    complete = complete_rows(label, slide, row_col)
    # Missing patches can depend on the label. So only complete slides show how much to smooth.
    rows = complete if len(np.unique(label[complete])) > 1 else np.arange(len(label))
    gaussian = _fit_gaussian(
        odds[rows], label[rows], slide[rows], row_col[rows], patch_um=patch_um, choose=choose
    )
    neighbors = fit_neighbor_model(
        *(odds[complete], label[complete], slide[complete], row_col[complete]),
        patch_um=patch_um,
        choose_threshold=choose,
    )
    return gaussian, neighbors


def _fit_gaussian(
    odds: NDArray[np.float64],
    label: NDArray[np.integer],
    slide: NDArray,
    row_col: NDArray[np.int32],
    *,
    patch_um: float,
    choose: ChooseThreshold,
) -> Smoothing:
    """Fit a Gaussian filter to log odds: its width, its temperature and its threshold.

    ``choose`` is a function that chooses a threshold from labels and probabilities.
    """

    def smoothed(sigma_um: float) -> NDArray[np.float64]:
        gaussian = Smoothing(sigma_um, temperature=1.0, threshold=0.5)
        return smooth_slides(gaussian, odds, slide, row_col, cell_um=patch_um)

    def loss(sigma_cells: float) -> float:
        pairs = _as_logits(smoothed(sigma_cells * patch_um))
        return _cross_entropy(pairs / fit_temperature(pairs, label), label)

    optimum = minimize_scalar(loss, bounds=(0, _MAX_SIGMA_CELLS), options={"xatol": 0.01})
    sigma_um = float(optimum.x) * patch_um
    smoothed_odds = smoothed(sigma_um)
    temperature = choose_temperature(
        _as_logits(smoothed_odds), label, name="temperature of the Gaussian"
    )
    probability = expit(smoothed_odds / temperature).astype(np.float32)
    return Smoothing(sigma_um, temperature, choose(label, probability))


def _as_logits(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert log odds, shape (N,), into logits, shape (N, 2)."""
    return np.stack([np.zeros_like(odds), odds], axis=1)


def choose_temperature(
    logit: NDArray[np.floating], label: NDArray[np.integer], *, name: str = "temperature"
) -> float:
    """Return the fitted temperature, or 1 if the fitted temperature increases the ECE.

    ``name`` is the name of the temperature in the log.

    The fit minimizes the cross-entropy. A few confident errors can dominate the cross-entropy, and
    then the ECE of all other patches increases.
    """
    fitted = fit_temperature(logit, label)
    before, after = (ece(label, idc_probability(logit, temperature=t)) for t in (1.0, fitted))
    if after <= before + _ECE_MARGIN:
        return fitted
    logger.info(
        "%s: 1, because the fitted temperature %.3f increases the ECE on val from %.3f to %.3f",
        *(name, fitted, before, after),
    )
    return 1.0


def fit_temperature(logit: NDArray[np.floating], label: NDArray[np.integer]) -> float:
    """Return the temperature that minimizes the cross-entropy (Guo et al. 2017, section 4.2)."""
    logit = logit.astype(np.float64)
    optimum = minimize_scalar(
        lambda log: _cross_entropy(logit / np.exp(log), label), bounds=_LOG_TEMPERATURE_BOUNDS
    )
    return float(np.exp(optimum.x))


def _cross_entropy(logit: NDArray[np.float64], label: NDArray[np.integer]) -> float:
    return float(-log_softmax(logit, axis=1)[np.arange(len(label)), label].mean())


def best_f1_threshold(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the threshold with the largest F1."""
    precision, recall, thresholds = precision_recall_curve(label, probability)
    total = np.maximum(precision + recall, np.finfo(float).tiny)
    return _below(thresholds, int(np.argmax((2 * precision * recall / total)[:-1])))


def best_youden_threshold(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the threshold with the largest sum of sensitivity and specificity (Youden 1950)."""
    negatives, positives, thresholds = roc_curve(label, probability, drop_intermediate=False)
    best = int(np.argmax((positives - negatives)[1:]))
    return _below(thresholds[:0:-1], len(thresholds) - 2 - best)


def sensitivity_threshold(
    label: NDArray[np.integer], probability: NDArray[np.floating], *, target: float
) -> float:
    """Return the largest threshold whose sensitivity is at least ``target``."""
    ascending = np.sort(probability[label == IDC])
    # With 1e-9, (1 - 0.9) * 10 gives 1, not 0.
    num_missed = int((1 - target) * len(ascending) + 1e-9)
    lowest = ascending[min(num_missed, len(ascending) - 1)]
    values = np.unique(probability)
    return _below(values, int(np.searchsorted(values, lowest)))


def _below(ascending: NDArray[np.floating], index: int) -> float:
    """Return a threshold just below a probability: halfway to the next lower probability.

    ``index`` is the position of the probability in the array ``ascending``.
    """
    # A threshold equal to a probability would depend on the rounding of this probability.
    upper, lower = float(ascending[index]), float(ascending[index - 1]) if index > 0 else 0.0
    middle = (upper + lower) / 2
    # The mean of two neighboring float32 numbers may round to the lower number.
    return middle if np.float32(middle) > np.float32(lower) else upper
