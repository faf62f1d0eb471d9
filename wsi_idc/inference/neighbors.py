"""Fit of a neighbor model to complete val slides, in which few patches are missing."""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi_idc.geometry.grid import RINGS, neighbor_fraction
from wsi_idc.models.smoothing import NeighborModel, ring_inputs, rows_of_slides

logger = logging.getLogger(__name__)

MIN_SLIDES = 4  # minimum number of complete slides for a fit
# In a complete slide, the patches of each class have at least this mean fraction of 8 neighbors.
# Complete slides of the Kaggle data have 0.57 or more in both classes. Slides with missing patches
# have 0.15 or less in one class, even if no patch of the other class is missing.
_MIN_FRACTION = 0.5
_REGULARIZATION = 0.1  # C of scikit-learn, for standardized inputs


ChooseThreshold = Callable[[NDArray[np.integer], NDArray[np.floating]], float]


def fit_neighbor_model(
    log_odds: NDArray[np.float64],
    label: NDArray[np.integer],
    slide: NDArray,
    row_col: NDArray[np.int32],
    *,
    patch_um: float,
    choose_threshold: ChooseThreshold,
) -> NeighborModel | None:
    """Fit a neighbor model to complete slides that the network was not trained on.

    The function ``complete_rows`` finds the patches of complete slides.

    Args:
        log_odds: Calibrated log odds of each patch, shape (N,).
        label: Label of each patch, 0 or 1, shape (N,).
        slide: Slide of each patch, shape (N,).
        row_col: Row and column of each patch on the grid of its slide, shape (N, 2).
        patch_um: Side of a patch in um.
        choose_threshold: Function that chooses a threshold from labels and probabilities.

    Returns:
        The model, or None if there are fewer than ``MIN_SLIDES`` slides or only one class.
    """
    slides = rows_of_slides(slide)
    if len(slides) < MIN_SLIDES or len(np.unique(label)) < 2:
        logger.info(
            "%d val slides are complete, and the neighbor model needs %d: --smooth uses a Gaussian",
            *(len(slides), MIN_SLIDES),
        )
        return None
    inputs = np.empty((len(label), len(RINGS)))
    for rows in slides:
        inputs[rows] = ring_inputs(log_odds[rows], row_col[rows])
    scaler, regression = StandardScaler(), LogisticRegression(C=_REGULARIZATION)
    make_pipeline(scaler, regression).fit(inputs, label)
    # Convert the weights for inputs that are not standardized.
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    probability = expit(inputs @ weights + bias).astype(np.float32)
    threshold = choose_threshold(label, probability)
    return NeighborModel(tuple(map(float, weights)), bias, threshold, patch_um)


def complete_rows(
    label: NDArray[np.integer], slide: NDArray, row_col: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return the indices of all patches of complete slides.

    A slide is complete if the patches of each class have at least half of their neighbors. The
    arguments are the same as those of ``fit_neighbor_model``.
    """
    rows = [part for part in rows_of_slides(slide) if _is_complete(label[part], row_col[part])]
    return np.concatenate([np.empty(0, np.int64), *rows])


def _is_complete(label: NDArray[np.integer], row_col: NDArray[np.int32]) -> bool:
    fraction = neighbor_fraction(row_col)
    return all(fraction[label == each].mean() >= _MIN_FRACTION for each in np.unique(label))
