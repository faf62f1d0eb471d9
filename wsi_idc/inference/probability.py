"""Probabilities of IDC from logits, with calibration and smoothing over neighboring patches."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from scipy.special import logit as logit_of

from wsi_idc.core.constants import IDC
from wsi_idc.models.smoothing import NeighborModel, Smoothing, smooth_slides

_MIN_PROBABILITY = 1e-6  # the log odds of 0 and 1 are infinite, and would hide all neighbors


def idc_probability(logit: NDArray[np.floating], *, temperature: float) -> NDArray[np.float32]:
    """Convert logits, shape (N, num_classes), into probabilities of IDC, shape (N,)."""
    return softmax(logit.astype(np.float64) / temperature, axis=1)[:, IDC].astype(np.float32)


def smoothed_probability(
    probability: NDArray[np.floating],
    slide: NDArray,
    row_col: NDArray[np.int32],
    *,
    smoothing: Smoothing | NeighborModel,
    cell_um: float,
) -> NDArray[np.float32]:
    """Smooth the probability of each patch over its neighbors on the grid.

    Args:
        probability: Probability of IDC of each patch, shape (N,).
        slide: Slide of each patch, shape (N,). A neighbor is a patch of the same slide.
        row_col: Row and column of each patch on the grid of its slide, shape (N, 2).
        smoothing: Gaussian filter or neighbor model.
        cell_um: Side of a grid cell in um.

    Returns:
        Smoothed probability of each patch, shape (N,), float32.
    """
    odds = smooth_slides(smoothing, log_odds(probability), slide, row_col, cell_um=cell_um)
    return expit(odds).astype(np.float32)


def log_odds(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log odds of probabilities, limited to finite values."""
    clipped = np.clip(probability.astype(np.float64), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    odds: NDArray[np.float64] = logit_of(clipped)
    return odds
