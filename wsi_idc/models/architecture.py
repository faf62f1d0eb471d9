"""Architecture: a kind of network, and how to build it with or without weights."""

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
        name: Name of the architecture, with its own dashes or underscores.
        build: Function that builds a network with random weights for a number of classes.
        cam_layer: Name of the module whose output is the last convolutional feature map.
        head: Name of the last layer, which computes the logits.
        closed_form: Whether only average pooling and a linear layer follow the last feature map.
            If so, Grad-CAM needs no gradient.
        input_px: Side in px to which patches are resized; None: patches are not resized.
        imagenet: ImageNet weights in torchvision; None for a network that torchvision lacks.
    """

    name: str
    build: Callable[[int], nn.Module]
    cam_layer: str
    head: str
    closed_form: bool
    input_px: int | None = None
    imagenet: WeightsEnum | None = None


class _MetaInit(TorchFunctionMode):
    """Mode in which parameters are created on the meta device, without memory and values."""

    # torch.device("meta") also affects tensors whose values a constructor needs, as in RegNet.
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_on_meta(build: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """Build a network whose parameters are on the meta device: they have shapes but no values.

    No random numbers are drawn. ``to_empty`` allocates memory, then ``load_state`` sets the values.
    """
    with _MetaInit():
        return build(num_classes)
