"""A network with all that stands around it: from raw patches to logits."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from wsi_idc.models.registry import Architecture
from wsi_idc.models.resize import resize


class Head(Protocol):
    """What a linear layer and a convolution that give class scores have in common."""

    weight: Tensor  # (num_classes, C, ...)
    bias: Tensor  # (num_classes,)


def to_images(patches: Tensor) -> Tensor:
    """Return images (N, 3, H, W), float32, 0..1, of patches (N, H, W, 3), uint8.

    In memory the channels stay last, as stored.
    """
    return patches.permute(0, 3, 1, 2).float() / 255


class PatchClassifier(nn.Module):
    """A network that takes patches as they are stored.

    Attributes:
        arch: Its architecture.
        network: Normalised images (N, 3, H, W) to logits (N, num_classes).
        input_px: Side that patches are resized to; None leaves them.
        mean, std: Of each channel, 0..1, as buffers of shape (1, 3, 1, 1).
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
    ) -> None:
        super().__init__()
        self.arch = arch
        self.network = network
        self.input_px = input_px
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return normalised images at the network's size of images (N, 3, H, W), 0..1."""
        # Normalised while it is small: interpolation is a mean, and commutes with that.
        x = (images - self.mean) / self.std
        if self.input_px is not None and self.input_px != x.shape[-1]:
            x = resize(x, self.input_px)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of patches as stored or of images made of them.

        Args:
            x: Patches (N, H, W, 3), uint8, or images (N, 3, H, W), float, 0..1.
        """
        return self.network(self.preprocess(to_images(x) if x.dtype == torch.uint8 else x))

    @property
    def head(self) -> Head:
        """The layer that gives the class scores."""
        return cast(Head, self.network.get_submodule(self.arch.head))
