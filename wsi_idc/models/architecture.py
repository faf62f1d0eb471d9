"""Architecture: a kind of network. ``build_on_meta`` builds a network without weight values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum


@dataclass(frozen=True)
class Architecture:
    """A kind of network that ends in a convolutional feature map and a head.

    Attributes:
        name: Name of the architecture, such as "efficientnet-b0" or "convnext_tiny".
        build: Function that builds a network with random weights for a number of classes.
        cam_layer: Name of the module whose output is the last convolutional feature map.
        head: Name of the last layer, which computes the logits.
        closed_form: Whether only average pooling and a linear layer follow the last feature map.
            If so, Grad-CAM needs no gradient.
        input_px: Side in px to which patches are resized; None: patches are not resized.
        imagenet: ImageNet weights in torchvision; None if torchvision does not have this network.
    """

    name: str
    build: Callable[[int], nn.Module]
    cam_layer: str
    head: str
    closed_form: bool
    input_px: int | None = None
    imagenet: WeightsEnum | None = None


class _MetaInit(TorchFunctionMode):
    """Mode that creates parameters on the meta device: they have no memory and no values."""

    # torch.device("meta") would also remove the values of tensors that RegNet's constructor reads.
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_on_meta(build: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """Build a network whose parameters are on the meta device: they have shapes but no values.

    No random numbers are drawn. To set values, call ``to_empty`` and then ``load_state``.
    """
    with _MetaInit():
        return build(num_classes)
