"""Loss of a batch: cross-entropy or focal loss, with class weights, label smoothing, mixup."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class Targets(NamedTuple):
    """Labels of the patches in a batch; if patches are mixed, each has two labels and a weight.

    Attributes:
        label: Label of each patch, shape (N,), int64.
        label_b: Label of the second patch that is mixed in, shape (N,); None without mixing.
        lam: Weight of ``label``, shape (N,); ``label_b`` has weight 1 - lam. None without mixing.
    """

    label: Tensor
    label_b: Tensor | None = None
    lam: Tensor | None = None

    def take(self, part: slice) -> "Targets":
        """Return the targets of a part of the batch."""
        return Targets(*(tensor[part] for tensor in self if tensor is not None))

    def to(self, device: torch.device) -> "Targets":
        """Return the targets with all tensors on ``device``."""
        return Targets(*(tensor.to(device) for tensor in self if tensor is not None))


@dataclass(frozen=True)
class Loss:
    """Cross-entropy with class weights, or focal loss (Lin et al. 2017, eq. 4, without alpha).

    Attributes:
        class_weight: Weight of each class, shape (num_classes,).
        label_smoothing: Fraction of each label that is spread over all classes.
        focal_gamma: Exponent of the focal loss; 0: cross-entropy.
    """

    class_weight: Tensor
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def normalizer(self, targets: Targets) -> Tensor:
        """Return the divisor of a batch's loss: the sum of the class weights of all patches."""
        return mix_targets(targets, lambda label: self.class_weight[label]).sum()

    def loss_sum(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return the sum of the losses of all patches, float32.

        ``logits`` has the shape (N, num_classes).
        """
        return mix_targets(targets, lambda label: self._losses(logits.float(), label)).sum()

    def cell_loss_sum(self, cells: Tensor, targets: Targets) -> Tensor:
        """Return the sum over all patches of the mean loss of the cells of a patch, float32.

        Args:
            cells: Logits of each cell of the last feature map, shape (N, num_classes, h, w).
            targets: Targets of the patches. With mixing, ``lam`` has the weight of each cell, shape
                (N, h, w).
        """
        num_cells = cells.shape[2] * cells.shape[3]
        of_cells = Targets(targets.label.repeat_interleave(num_cells))
        if targets.label_b is not None and targets.lam is not None:
            label_b = targets.label_b.repeat_interleave(num_cells)
            of_cells = Targets(of_cells.label, label_b, targets.lam.flatten())
        return self.loss_sum(cells.movedim(1, -1).flatten(0, 2), of_cells) / num_cells

    def _losses(self, logits: Tensor, label: Tensor) -> Tensor:
        weight, smoothing = self.class_weight, self.label_smoothing
        losses = F.cross_entropy(logits, label, weight, reduction="none", label_smoothing=smoothing)
        if self.focal_gamma == 0:
            return losses
        probability = logits.softmax(1).gather(1, label[:, None])[:, 0]
        # The gradient of the power may be infinite at 0, so the base is at least 1e-6.
        return (1 - probability).clamp(min=1e-6) ** self.focal_gamma * losses


def mix_targets(targets: Targets, value_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``value_of(label)`` for the label of each patch, shape (N,).

    With mixing, each patch has two labels. The result is the weighted mean of their two values.
    """
    values = value_of(targets.label)
    if targets.label_b is None or targets.lam is None:
        return values
    return targets.lam * values + (1 - targets.lam) * value_of(targets.label_b)


def inverse_frequency(label: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return class weights, inverse to the class frequency; the mean weight of all patches is 1."""
    return len(label) / (2 * np.bincount(label, minlength=2))
