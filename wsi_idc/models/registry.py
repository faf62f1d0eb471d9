"""Architectures by name: the function that builds the network, and the layer for its CAMs."""

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.cnn import PatchCnn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# For each VGG network, the index of the last ReLU in ``network.features``.
_VGG = {"11": 19, "11_bn": 27, "13": 23, "13_bn": 33, "16": 29, "16_bn": 42, "19": 35, "19_bn": 51}
# The key is the start of the name of a torchvision model; if several keys fit, the longest is used.
# The value is the module of the last feature map, the module of the head, and ``closed_form``.
_TORCHVISION = {
    "alexnet": ("features.11", "classifier.6", False),
    "convnext": ("features", "classifier.2", False),
    "densenet": ("features", "classifier", True),
    "googlenet": ("inception5b", "fc", True),
    "inception": ("Mixed_7c", "fc", True),
    "maxvit": ("blocks.3", "classifier.5", False),
    "mnasnet": ("layers", "classifier.1", True),
    "mobilenet_v3": ("features", "classifier.3", False),
    "regnet": ("trunk_output", "fc", True),
    "shufflenet": ("conv5", "fc", True),
    "squeezenet": ("features", "classifier.1", False),
    "swin": ("permute", "head", True),
    **dict.fromkeys(("efficientnet", "mobilenet_v2"), ("features", "classifier.1", True)),
    **dict.fromkeys(("resnet", "resnext", "wide_resnet"), ("layer4", "fc", True)),
    **{f"vgg{kind}": (f"features.{last}", "classifier.6", False) for kind, last in _VGG.items()},
}


@dataclass(frozen=True)
class Architecture:
    """A kind of network that ends in a convolutional feature map and a head.

    Attributes:
        name: Name of the architecture, with its own dashes or underscores.
        build: Function that builds a network with random weights; its argument is the number of
            classes.
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
    imagenet: torchvision.models.WeightsEnum | None = None


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

    No random numbers are drawn. To use the network, call ``to_empty``, which allocates memory, and
    then ``load_state``, which sets the values.
    """
    with _MetaInit():
        return build(num_classes)


def _build_torchvision(name: str, num_classes: int) -> nn.Module:
    # Build these two networks without auxiliary heads: they help networks without batch norm.
    auxiliary = name in ("googlenet", "inception_v3")
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if auxiliary else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


@functools.cache
def _of_torchvision(name: str) -> Architecture:
    family = max((start for start in _TORCHVISION if name.startswith(start)), key=len, default="")
    if not family:
        raise CheckpointError(
            f"{name} has no convolutional feature map to take a CAM from; choose a convolutional "
            "model, such as resnet50 or convnext_tiny"
        )
    cam_layer, head, closed_form = _TORCHVISION[family]
    imagenet = torchvision.models.get_model_weights(name).DEFAULT
    (input_px,) = imagenet.transforms().crop_size
    build = functools.partial(_build_torchvision, name)
    own_name = "efficientnet-b0" if name == "efficientnet_b0" else name
    return Architecture(own_name, build, cam_layer, head, closed_form, input_px, imagenet)


ARCHITECTURES = {
    name: Architecture(
        name, functools.partial(PatchCnn, batch_norm=batch_norm), "features", "classifier", True
    )
    for name, batch_norm in (("cnn", False), ("cnn-bn", True))
} | {
    name.replace("_", "-"): _of_torchvision(name)
    for name in ("resnet18", "resnet50", "efficientnet_b0")
}


def architecture(name: str) -> Architecture:
    """Return the architecture with this name: one of ``ARCHITECTURES``, or one of torchvision.

    In the name, dashes and underscores are equivalent.

    Raises:
        CheckpointError: The name is unknown, or the network has no feature map for a CAM.
    """
    dashed, underscored = name.replace("_", "-"), name.replace("-", "_")
    if dashed in ARCHITECTURES:
        return ARCHITECTURES[dashed]
    known = torchvision.models.list_models(module=torchvision.models)
    if underscored in known:
        return _of_torchvision(underscored)
    near = difflib.get_close_matches(underscored, sorted({*ARCHITECTURES, *known}), n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise CheckpointError(
        f"unknown model {name!r}; {hint}There are {', '.join(ARCHITECTURES)} and torchvision's "
        "classifiers, such as mobilenet_v3_small"
    )
