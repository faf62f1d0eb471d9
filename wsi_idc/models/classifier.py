"""Classifier: a network with its preprocessing. It computes logits from stored patches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_idc.models.architecture import Architecture
from wsi_idc.models.novelty import NoveltyModel


class Head(Protocol):
    """Type of the last layer, which computes the logits: a linear layer or a convolution."""

    weight: Tensor  # (num_classes, C, ...)
    bias: Tensor  # (num_classes,)


def to_images(patches: Tensor) -> Tensor:
    """Convert patches (N, H, W, 3), uint8, to images (N, 3, H, W), float32, 0..1.

    The order of the values in memory does not change (``torch.channels_last``).
    """
    return patches.permute(0, 3, 1, 2).float().div_(255)


class PatchClassifier(nn.Module):
    """A network with its preprocessing; its input has the same format as the patches of a pack.

    Attributes:
        arch: Architecture of the network.
        network: Network that computes logits (N, num_classes) of normalized images (N, 3, H, W).
        input_px: Side in px to which patches are resized; None: patches are not resized.
        mean, std: Mean and standard deviation of each channel, to normalize values in 0..1.
            Their shape is (1, 3, 1, 1).
        interpolation: Interpolation that resizes patches, "bilinear" or "bicubic".
        novelty: Novelty model of the train patches, or None.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: Architecture,
        network: nn.Module,
        *,
        input_px: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bilinear",
        novelty: NoveltyModel | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.network, self.input_px = arch, network, input_px
        self.interpolation, self.novelty = interpolation, novelty
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalize the input of ``forward`` and resize it to the input size of the network."""
        images = to_images(x) if x.dtype == torch.uint8 else x
        # Patches are usually enlarged, so normalizing first is faster. The result is the same,
        # because interpolation is a weighted mean.
        # A CPU is faster with a mean for each px than with three means.
        mean, std = (
            value.expand_as(images[:1]).contiguous(memory_format=torch.channels_last)
            for value in (self.mean, self.std)
        )
        x = (images - mean).div_(std)
        if self.input_px is None or self.input_px == x.shape[-1]:
            return x
        size = (self.input_px, self.input_px)
        if self.interpolation == "bilinear" and self.input_px > x.shape[-1]:
            # Enlarging needs no filter against aliasing, which takes longer.
            return F.interpolate(x, size=size, mode="bilinear")
        # contiguous: on a CPU, the filter is faster if the channels are first in memory.
        return F.interpolate(x.contiguous(), size=size, mode=self.interpolation, antialias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of a batch, shape (N, num_classes).

        Args:
            x: Patches (N, H, W, 3), uint8, or images (N, 3, H, W), float, 0..1.
        """
        return self.network(self.preprocess(x))

    @property
    def head(self) -> Head:
        """Last layer of the network, which computes the logits."""
        return cast(Head, self.network.get_submodule(self.arch.head))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context manager that sets all modules to eval mode; at the end, it restores their modes."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
