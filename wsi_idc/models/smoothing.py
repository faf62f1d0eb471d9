"""Two methods to smooth the log odds of neighboring patches: Gaussian filter, neighbor model."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import POSSIBLE_TEMPERATURE
from wsi_idc.geometry.grid import RINGS, ring_means, smooth

# Larger log odds are limited to this value, because they come from an overconfident network.
_MAX_LOG_ODDS = 6.0
_MAX_WEIGHT = 1e6  # larger weights are no result of a fit


def is_probability(value: float) -> bool:
    """Return True if 0 <= value <= 1."""
    return 0 <= value <= 1


@dataclass(frozen=True)
class Smoothing:
    """Gaussian filter: a weighted mean of the log odds of a patch and of its neighbors.

    Attributes:
        sigma_um: Standard deviation of the Gaussian function of the weights, in um.
        temperature: Divisor of the smoothed log odds.
        threshold: A patch is called IDC if its smoothed probability is at least this value.
    """

    sigma_um: float
    temperature: float
    threshold: float

    def __post_init__(self) -> None:
        coldest, warmest = POSSIBLE_TEMPERATURE
        is_possible = 0 <= self.sigma_um < math.inf and coldest <= self.temperature <= warmest
        if not (is_possible and is_probability(self.threshold)):
            raise ValueError(f"a value of {self} is out of range")

    def smooth(
        self, log_odds: NDArray[np.float64], row_col: NDArray[np.int32], *, cell_um: float
    ) -> NDArray[np.float64]:
        """Smooth the log odds of the patches of one slide; a grid cell has the side ``cell_um``."""
        return smooth(log_odds, row_col, sigma=self.sigma_um / cell_um) / self.temperature

    def record(self) -> dict[str, float]:
        """Return the attributes as a dictionary for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class NeighborModel:
    """Logistic regression on the log odds of a patch and the mean log odds of rings around it.

    The number of neighbors is not an input of the model. This number can depend on the label,
    because more patches of one label are missing in some data sets.

    Attributes:
        weights: Weight of each ring of ``geometry.grid.RINGS``; the first ring is the patch itself.
        bias: Constant that is added to the weighted sum.
        threshold: A patch is called IDC if its smoothed probability is at least this value.
        patch_um: Side of a train patch in um. Distances between patches are given in this unit.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float
    patch_um: float

    def __post_init__(self) -> None:
        is_possible = all(abs(weight) <= _MAX_WEIGHT for weight in (*self.weights, self.bias))
        if len(self.weights) != len(RINGS) or not is_possible:
            raise ValueError(f"a neighbor model needs {len(RINGS)} finite weights and a bias")
        if not (0 < self.patch_um < math.inf and is_probability(self.threshold)):
            raise ValueError(f"a value of {self} is out of range")

    def smooth(
        self, log_odds: NDArray[np.float64], row_col: NDArray[np.int32], *, cell_um: float
    ) -> NDArray[np.float64]:
        """Smooth the log odds of the patches of one slide; a grid cell has the side ``cell_um``."""
        step = max(1, round(self.patch_um / cell_um))
        return ring_inputs(log_odds, row_col, step=step) @ np.array(self.weights) + self.bias

    def record(self) -> dict[str, float]:
        """Return the attributes as a dictionary for a JSON file."""
        weights = {f"weight_{number}": weight for number, weight in enumerate(self.weights)}
        return weights | {"bias": self.bias, "threshold": self.threshold, "patch_um": self.patch_um}


def ring_inputs(
    log_odds: NDArray[np.float64], row_col: NDArray[np.int32], *, step: int = 1
) -> NDArray[np.float64]:
    """Return the inputs of a neighbor model, one column per ring, for the patches of one slide.

    ``step`` is the distance between neighboring patches, in grid cells.
    """
    return ring_means(np.clip(log_odds, -_MAX_LOG_ODDS, _MAX_LOG_ODDS), row_col, step=step)


def smooth_slides(
    smoothing: Smoothing | NeighborModel,
    log_odds: NDArray[np.float64],
    slide: NDArray,
    row_col: NDArray[np.int32],
    *,
    cell_um: float,
) -> NDArray[np.float64]:
    """Smooth the log odds of the patches of several slides; neighbors belong to the same slide."""
    result = np.empty(len(log_odds))
    for rows in rows_of_slides(slide):
        result[rows] = smoothing.smooth(log_odds[rows], row_col[rows], cell_um=cell_um)
    return result


def rows_of_slides(slide: NDArray) -> list[NDArray[np.int64]]:
    """Return an array for each slide: the indices of its patches in ``slide``."""
    _, code = np.unique(slide, return_inverse=True)
    if not len(code):
        return []
    return np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
