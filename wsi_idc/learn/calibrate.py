"""Temperature and threshold, set on val patients only."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import precision_recall_curve

from wsi_idc.models.classifier import IDC

_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)


def idc_probability(logit: NDArray[np.floating], *, temperature: float) -> NDArray[np.float32]:
    """Return the calibrated probability of IDC, shape (N,), of logits (N, num_classes)."""
    return softmax(logit.astype(np.float64) / temperature, axis=1)[:, IDC].astype(np.float32)


def fit_temperature(logit: NDArray[np.floating], label: NDArray[np.integer]) -> float:
    """Return the temperature with the least cross-entropy (Guo et al. 2017, section 4.2)."""
    logit = logit.astype(np.float64)
    rows = np.arange(len(label))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logit / np.exp(log_temperature), axis=1)[rows, label].mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded")
    return float(np.exp(found.x))


def best_f1_threshold(label: NDArray[np.integer], probability: NDArray[np.floating]) -> float:
    """Return the threshold, called IDC at or above, with the largest F1."""
    precision, recall, thresholds = precision_recall_curve(label, probability)
    total = np.maximum(precision + recall, np.finfo(float).tiny)
    f1 = (2 * precision * recall / total)[:-1]
    best = int(np.argmax(f1))
    # Between two patches, not on one: its call must not hang on the last digit.
    below = thresholds[best - 1] if best > 0 else 0.0
    return float((thresholds[best] + below) / 2)
