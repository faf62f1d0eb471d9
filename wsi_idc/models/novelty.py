"""Novelty: how much a patch differs from the train patches of a classifier.

The statistics of a patch are the mean and the standard deviation of each channel of a feature map,
over all cells of the map. A Gaussian distribution is fitted to the statistics of the train patches.
The distance of a patch is its Mahalanobis distance from this distribution (Lee et al. 2018,
arXiv:1807.03888). Its novelty is the fraction of val patches whose distance is smaller.

The function ``novelty_layer`` chooses the feature map: the last map that has at least one row and
one column per 8 px of the image. Later feature maps mostly separate the classes. They do not show
changes of stain, focus and resolution that make the classifier fail (figures: docs/concepts.md).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# A patient is unlike the training data if its mean novelty exceeds the mean of the val patients by
# more than this number of standard deviations. This is true for 0 of 57 unseen patients.
_NUM_STD = 2.5
_UNIFORM_STD = math.sqrt(1 / 12)  # standard deviation of a uniform distribution in 0..1
# Minimum standard deviation between patients. A few val patients can be similar by chance, and the
# limit would be too low for new patients. The 12 val patients of the bundled model have 0.08.
_MIN_PATIENT_STD = 0.1
_MAX_QUANTILES = 100_000


@dataclass(frozen=True, eq=False)
class NoveltyModel:
    """Gaussian model of the train patches, and the distances of the val patches.

    Attributes:
        layer: Name of the module whose output is the feature map.
        mean: Mean of ``map_statistics`` over the train patches, shape (d,), float32.
        whitening: Matrix by which the centered statistics are multiplied, so that their covariance
            becomes the unit matrix; shape (d, d), float32.
        quantiles: Quantiles of the distances of the val patches, at evenly spaced levels from 0 to
            1; shape (q,), float32.
        patient_mean: Mean of the novelty of the val patients. The novelty of a patient is the mean
            over the patches of the patient.
        patient_std: Standard deviation of the novelty of the val patients.
    """

    layer: str
    mean: Tensor
    whitening: Tensor
    quantiles: Tensor
    patient_mean: float
    patient_std: float

    def to(self, device: torch.device) -> "NoveltyModel":
        """Return a copy that computes distances on ``device``."""
        mean, whitening = (x.to(device) for x in (self.mean, self.whitening))
        return replace(self, mean=mean, whitening=whitening)

    def distance(self, statistics: Tensor) -> Tensor:
        """Convert the ``map_statistics`` of each patch into its Mahalanobis distance."""
        with torch.autocast(statistics.device.type, enabled=False):
            return ((statistics - self.mean) @ self.whitening).norm(dim=1)

    def novelty(self, distance: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert the distance of each patch into its novelty, 0..1.

        If a distance is not finite, the novelty is 1. Such a distance means that a value of the
        feature map is too large for fp16.
        """
        distance = np.nan_to_num(distance, nan=np.inf, posinf=np.inf)
        quantiles = self.quantiles.numpy()
        levels = np.linspace(0, 1, len(quantiles))
        return np.interp(distance, quantiles, levels).astype(np.float32)

    def patient_limit(self, num_patches: int) -> float:
        """Return the largest usual mean novelty of a patient with ``num_patches`` patches."""
        # The mean of a few patches varies more than the mean of the many patches of a val patient.
        patient_std = max(self.patient_std, _MIN_PATIENT_STD)
        std = math.hypot(patient_std, _UNIFORM_STD / math.sqrt(num_patches))
        return min(self.patient_mean + _NUM_STD * std, 1.0)

    def validate(self, num_channels: int) -> None:
        """Raise ValueError if an attribute does not fit a map of ``num_channels`` channels."""
        size = 2 * num_channels
        shapes = [tuple(x.shape) for x in (self.mean, self.whitening, self.quantiles)]
        if shapes[:2] != [(size,), (size, size)]:
            raise ValueError("the novelty model does not fit the network")
        if len(shapes[2]) != 1 or not 2 <= shapes[2][0] <= _MAX_QUANTILES:
            raise ValueError("the number of quantiles of the novelty model is out of range")
        tensors = (self.mean, self.whitening, self.quantiles)
        if not all(x.dtype == torch.float32 and torch.isfinite(x).all() for x in tensors):
            raise ValueError("a value of the novelty model is not a finite number")
        is_ascending = bool((self.quantiles.diff() >= 0).all())
        if not (is_ascending and 0 <= self.patient_mean <= 1 and 0 <= self.patient_std <= 1):
            raise ValueError("a value of the novelty model is out of range")


def map_statistics(feature_map: Tensor) -> Tensor:
    """Compute the statistics of each patch from its feature map.

    Args:
        feature_map: Feature maps of N patches, shape (N, C, h, w).

    Returns:
        C means, then C standard deviations of each patch, shape (N, 2 C), float32.
    """
    values = feature_map.detach().flatten(2).float()
    mean = values.mean(dim=2, keepdim=True)
    # Faster than ``values.std`` on a CPU.
    std = (values - mean).square_().mean(dim=2).sqrt_()
    return torch.cat([mean[..., 0], std], dim=1)


@contextmanager
def recorded_statistics(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Context manager that yields a list; each forward pass appends the statistics of a batch."""
    recorded: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(output, Tensor):  # not for the placeholders of torch.fx
            recorded.append(map_statistics(output))

    with network.get_submodule(layer).register_forward_hook(record):
        yield recorded
