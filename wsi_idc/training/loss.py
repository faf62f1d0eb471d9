"""The loss of a batch, computed in parts or on many devices as if it were in one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Targets:
    """What a batch is to be told apart by; a blend of two labels where patches are mixed.

    Attributes:
        label: Shape (N,), int64.
        other: Label of the patch that is blended in, shape (N,); None where none is.
        share: Of ``label`` in the blend, shape (N,); None where there is no other.
    """

    label: Tensor
    other: Tensor | None = None
    share: Tensor | None = None

    def take(self, part: slice) -> "Targets":
        """Return a part of the batch."""
        if self.other is None or self.share is None:
            return Targets(self.label[part])
        return Targets(self.label[part], self.other[part], self.share[part])

    def to(self, device: torch.device) -> "Targets":
        """Return them on a device."""
        if self.other is None or self.share is None:
            return Targets(self.label.to(device))
        return Targets(self.label.to(device), self.other.to(device), self.share.to(device))


@dataclass(frozen=True)
class Loss:
    """Cross-entropy, weighted by class, or focal (Lin et al. 2017, eq. 4, without alpha).

    Attributes:
        class_weight: Shape (num_classes,).
        label_smoothing: Share of a label that goes to all classes alike.
        focal_gamma: Exponent; 0 is plain cross-entropy.
    """

    class_weight: Tensor
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def total(self, labels: Targets) -> Tensor:
        """Return what a whole batch's sum of losses is divided by: the weight in it."""
        return self._blend(labels, lambda label: self.class_weight[label]).sum()

    def sum(self, logits: Tensor, labels: Targets) -> Tensor:
        """Return the summed loss of logits (N, num_classes), which stay in full precision."""
        return self._blend(labels, lambda label: self._losses(logits.float(), label)).sum()

    @staticmethod
    def _blend(labels: Targets, of: Callable[[Tensor], Tensor]) -> Tensor:
        first = of(labels.label)
        if labels.other is None or labels.share is None:
            return first
        return labels.share * first + (1 - labels.share) * of(labels.other)

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
        found = logits.softmax(1).gather(1, label[:, None])[:, 0]
        # Away from 0, where a root has no slope.
        return (1 - found).clamp(min=1e-6) ** self.focal_gamma * losses


def inverse_frequency(label: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the weight of each class, one over its share, with a mean of 1 over the patches."""
    return len(label) / (2 * np.bincount(label, minlength=2))
