"""Loss of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class Targets(NamedTuple):
    """Targets of a batch; with mixup, two labels and the weight of the first.

    Attributes:
        label: Labels, shape (N,), int64.
        label_b: Labels of the patches that are mixed in, shape (N,); None without mixup.
        lam: Weight of ``label``, shape (N,); None without mixup.
    """

    label: Tensor
    label_b: Tensor | None = None
    lam: Tensor | None = None

    def take(self, part: slice) -> "Targets":
        """Return the targets of a part of the batch."""
        return Targets(*(tensor[part] for tensor in self if tensor is not None))

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on a device."""
        return Targets(*(tensor.to(device) for tensor in self if tensor is not None))


@dataclass(frozen=True)
class Loss:
    """Cross-entropy, weighted by class, or focal (Lin et al. 2017, eq. 4, without alpha).

    Attributes:
        class_weight: Weight of each class, shape (num_classes,).
        label_smoothing: Fraction of a label that is spread over all classes.
        focal_gamma: Exponent; 0 is plain cross-entropy.
    """

    class_weight: Tensor
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def normalizer(self, targets: Targets) -> Tensor:
        """Return the sum of the weights in a complete batch, by which its loss is divided."""
        return mix_targets(targets, lambda label: self.class_weight[label]).sum()

    def loss_sum(self, logits: Tensor, targets: Targets) -> Tensor:
        """Compute the summed loss of logits, shape (N, num_classes), in full precision."""
        return mix_targets(targets, lambda label: self._losses(logits.float(), label)).sum()

    def _losses(self, logits: Tensor, label: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits,
            label,
            weight=self.class_weight,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        if self.focal_gamma == 0:
            return losses
        probability = logits.softmax(1).gather(1, label[:, None])[:, 0]
        # Not 0, where the power has no finite slope.
        return (1 - probability).clamp(min=1e-6) ** self.focal_gamma * losses


def mix_targets(targets: Targets, value_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute a value for each label, shape (N,), weighted by ``lam`` if targets are mixed."""
    values = value_of(targets.label)
    if targets.label_b is None or targets.lam is None:
        return values
    return targets.lam * values + (1 - targets.lam) * value_of(targets.label_b)


def inverse_frequency(label: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return a weight per class, inverse to its frequency; the mean over all patches is 1."""
    return len(label) / (2 * np.bincount(label, minlength=2))
