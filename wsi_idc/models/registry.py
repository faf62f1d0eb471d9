"""Registry that finds an architecture of this program, torchvision or timm by its name."""

import difflib
import functools
from typing import Any

from torch import nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.architecture import Architecture
from wsi_idc.models.cam_layers import CAM_LAYERS
from wsi_idc.models.cnn import PatchCnn
from wsi_idc.models.feature_map import FEATURE_MAP, MappedNetwork
from wsi_idc.models.light_torchvision import import_torchvision
from wsi_idc.models.mobilenet import UNUSED, MobileNetV2S16

_VIT_PX = 224  # side of the images of torchvision's vision transformers
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.cache
def _of_torchvision(name: str) -> Architecture:
    torchvision = import_torchvision()
    if name.startswith("vit_"):
        return _vision_transformer(name)
    family = max((start for start in CAM_LAYERS if name.startswith(start)), key=len, default="")
    if not family:
        raise CheckpointError(
            f"{name} has no convolutional feature map, so it has no CAM; choose a convolutional "
            "model, such as resnet50 or convnext_tiny"
        )
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        # Auxiliary heads help only networks without batch norm, and these networks have it.
        options |= {"aux_logits": False, "init_weights": True}

    def build(num_classes: int) -> nn.Module:
        return torchvision.models.get_model(name, num_classes=num_classes, **options)

    imagenet = torchvision.models.get_model_weights(name).DEFAULT
    (input_px,) = imagenet.transforms().crop_size
    own_name = "efficientnet-b0" if name == "efficientnet_b0" else name
    return Architecture(own_name, build, *CAM_LAYERS[family], input_px, imagenet)


def _vision_transformer(name: str) -> Architecture:
    torchvision = import_torchvision()

    def build(num_classes: int) -> nn.Module:
        encoder = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        last, _ = list(encoder.encoder.layers.named_children())[-1]
        return MappedNetwork(encoder, "NTC", f"encoder.layers.{last}")

    # Other weights are for larger images, which a network of the usual size does not take.
    published = torchvision.models.get_model_weights(name)
    weights = next(each for each in published if each.transforms().crop_size == [_VIT_PX])
    head = "encoder.heads.head"
    return Architecture(name, build, FEATURE_MAP, head, False, _VIT_PX, weights, prefix="encoder.")


_OWN = {
    name: Architecture(name, functools.partial(PatchCnn, batch_norm=has_norm), *CAM_LAYERS["cnn"])
    for name, has_norm in (("cnn", False), ("cnn-bn", True))
}
_OWN["mobilenet-v2-s16"] = Architecture(
    "mobilenet-v2-s16", MobileNetV2S16, *CAM_LAYERS["mobilenet_v2"], input_px=96, unused=UNUSED
)
# Names that help texts and errors mention; ``architecture`` also finds those of torchvision.
MODEL_NAMES = (*_OWN, "resnet18", "resnet50", "efficientnet-b0")


def architecture(name: str) -> Architecture:
    """Return the architecture with this name; a dash and an underscore are equal.

    Names of timm begin with "timm:", and repositories of the Hugging Face hub with "hf-hub:".

    Raises:
        CheckpointError: The name is unknown, or the network has no feature map for a CAM.
    """
    if name.startswith(("timm:", "hf-hub:")):
        from wsi_idc.models.timm_models import timm_architecture

        return timm_architecture(name)
    dashed, underscored = name.replace("_", "-"), name.replace("-", "_")
    if dashed in _OWN:
        return _OWN[dashed]
    torchvision = import_torchvision()
    known = torchvision.models.list_models(module=torchvision.models)
    if underscored in known:
        return _of_torchvision(underscored)
    near = difflib.get_close_matches(underscored, sorted({*MODEL_NAMES, *known}), n=3)
    hint = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
    raise CheckpointError(
        f"unknown model {name!r}; {hint}give {', '.join(MODEL_NAMES)} or a classifier of "
        "torchvision, such as mobilenet_v3_small"
    )
