"""The architectures by name: how to build one, and where its CAM comes from."""

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.cnn import PatchCnn
from wsi_idc.models.tracing import feature_map_size, find_cam_and_head

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MIN_CELLS = 2  # a CAM of one cell shows nothing


@dataclass(frozen=True)
class Architecture:
    """One kind of network that ends in a convolutional feature map and a head.

    Attributes:
        name: Its one spelling.
        build: Number of classes to a fresh network with random weights.
        cam_layer: Name of the module whose output is the last convolutional feature map.
        head: Name of the layer that gives the class scores.
        closed_form: Whether the logits are the head, a linear layer, of that map's mean over its
            cells; Grad-CAM then needs no gradient.
        input_px: Side that patches are resized to; None leaves them as they are.
        imagenet: torchvision's weights, None where there are none.
    """

    name: str
    build: Callable[[int], nn.Module]
    cam_layer: str
    head: str
    closed_form: bool
    input_px: int | None = None
    imagenet: torchvision.models.WeightsEnum | None = None


def _build(name: str) -> Callable[[int], nn.Module]:
    """Return how torchvision's network of that name is built."""
    # Auxiliary heads help networks without batch norm; these two have it.
    auxiliary = name in ("googlenet", "inception_v3")
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if auxiliary else {}

    def build(num_classes: int) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)

    return build


_ALL = (
    Architecture(
        "cnn",
        lambda n: PatchCnn(num_classes=n, batch_norm=False),
        cam_layer="features",
        head="classifier",
        closed_form=True,
    ),
    Architecture(
        "cnn-bn",
        lambda n: PatchCnn(num_classes=n, batch_norm=True),
        cam_layer="features",
        head="classifier",
        closed_form=True,
    ),
    Architecture(
        "resnet18",
        _build("resnet18"),
        cam_layer="layer4",
        head="fc",
        closed_form=True,
        input_px=224,
        imagenet=torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    ),
    Architecture(
        "resnet50",
        _build("resnet50"),
        cam_layer="layer4",
        head="fc",
        closed_form=True,
        input_px=224,
        imagenet=torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    ),
    Architecture(
        "efficientnet-b0",
        _build("efficientnet_b0"),
        cam_layer="features",
        head="classifier.1",
        closed_form=True,
        input_px=224,
        imagenet=torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    ),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}


def architecture(name: str) -> Architecture:
    """Return the architecture of that name, one of ``ARCHITECTURES`` or torchvision's.

    Dashes and underscores are the same.

    Raises:
        CheckpointError: There is none, or it has no feature map to take a CAM from.
    """
    dashed, plain = name.replace("_", "-"), name.replace("-", "_")
    if dashed in ARCHITECTURES:
        return ARCHITECTURES[dashed]
    known = torchvision.models.list_models(module=torchvision.models)
    if plain in known:
        return _of_torchvision(plain)
    names = sorted({*ARCHITECTURES, *known})
    near = difflib.get_close_matches(plain, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise CheckpointError(
        f"unknown model {name!r}; {hint}There are {', '.join(ARCHITECTURES)} and torchvision's "
        "classifiers, such as mobilenet_v3_small"
    )


def check_input_px(arch: Architecture, input_px: int) -> None:
    """Raise where images of this size leave no map to take a CAM from.

    Raises:
        CheckpointError: They do.
    """
    if feature_map_size(arch.build, arch.cam_layer, input_px=input_px) < _MIN_CELLS:
        usual = f"{arch.input_px} px is its own" if arch.input_px else f"{PATCH_PX} px is usual"
        raise CheckpointError(
            f"{arch.name} cannot work on images of {input_px} px, or makes no map of them; give "
            f"another --input-size ({usual})"
        )


@functools.cache
def _of_torchvision(name: str) -> Architecture:
    imagenet = torchvision.models.get_model_weights(name).DEFAULT
    (input_px,) = imagenet.transforms().crop_size
    build = _build(name)
    layers = find_cam_and_head(name, build)
    return Architecture(
        name,
        build,
        cam_layer=layers.cam_layer,
        head=layers.head,
        closed_form=layers.closed_form,
        input_px=input_px,
        imagenet=imagenet,
    )
