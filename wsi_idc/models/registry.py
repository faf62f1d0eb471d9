"""The architectures by name: how to build one, and where its CAM comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from wsi_idc.errors import CheckpointError
from wsi_idc.models.cnn import PatchCnn

WEIGHTS = ("imagenet", "none")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """One kind of network whose head is global average pooling and one linear layer.

    Attributes:
        name: As the user spells it.
        build: Number of classes to a fresh network with random weights.
        cam_layer: Name of the module whose output is the last convolutional feature map.
        head: Name of the linear layer.
        input_px: Side that patches are resized to; None leaves them as they are.
        imagenet: torchvision's weights, None where there are none.
    """

    name: str
    build: Callable[[int], nn.Module]
    cam_layer: str
    head: str
    input_px: int | None = None
    imagenet: torchvision.models.WeightsEnum | None = None


def _torchvision(
    name: str, *, cam_layer: str, head: str, imagenet: torchvision.models.WeightsEnum
) -> Architecture:
    def build(num_classes: int) -> nn.Module:
        return torchvision.models.get_model(
            name.replace("-", "_"), weights=None, num_classes=num_classes
        )

    return Architecture(name, build, cam_layer, head, input_px=224, imagenet=imagenet)


_ALL = (
    Architecture(
        "cnn", lambda n: PatchCnn(num_classes=n, batch_norm=False), "features", "classifier"
    ),
    Architecture(
        "cnn-bn", lambda n: PatchCnn(num_classes=n, batch_norm=True), "features", "classifier"
    ),
    _torchvision(
        "resnet18",
        cam_layer="layer4",
        head="fc",
        imagenet=torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    ),
    _torchvision(
        "resnet50",
        cam_layer="layer4",
        head="fc",
        imagenet=torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    ),
    _torchvision(
        "efficientnet-b0",
        cam_layer="features",
        head="classifier.1",
        imagenet=torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    ),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}


def architecture(name: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        CheckpointError: There is none.
    """
    if name not in ARCHITECTURES:
        raise CheckpointError(f"unknown model {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def weights_file(arch: Architecture) -> Path:
    """Return where torchvision keeps the ImageNet weights of ``arch`` on this machine."""
    assert arch.imagenet is not None
    return Path(torch.hub.get_dir()) / "checkpoints" / arch.imagenet.url.rsplit("/", 1)[-1]


def load_imagenet(network: nn.Module, arch: Architecture) -> None:
    """Fill all but the head of ``network`` with ImageNet weights from torchvision's cache.

    Nothing is downloaded: compute nodes have no internet.

    Raises:
        CheckpointError: The weights are not in the cache, or are damaged.
    """
    file = weights_file(arch)
    if not file.exists():
        raise CheckpointError(
            f"ImageNet weights of {arch.name} are not on this machine ({file}); run "
            f"`wsi-idc fetch-weights {arch.name}` where there is internet, or train with "
            "--weights none"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = {k: v for k, v in state.items() if not k.startswith(f"{arch.head}.")}
        missing, unexpected = network.load_state_dict(state, strict=False)
    except Exception as error:
        raise CheckpointError(f"{file}: damaged weights; delete it and fetch it again") from error
    if unexpected or any(not key.startswith(f"{arch.head}.") for key in missing):
        raise CheckpointError(f"{file}: not the weights of {arch.name}; delete it, fetch again")


def fetch_imagenet(arch: Architecture) -> Path:
    """Download the ImageNet weights of ``arch`` into torchvision's cache; return the file.

    Raises:
        CheckpointError: There are none for this model, or the download failed.
    """
    if arch.imagenet is None:
        raise CheckpointError(f"{arch.name} is trained from scratch; it has no ImageNet weights")
    file = weights_file(arch)
    try:
        arch.imagenet.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"could not fetch {arch.imagenet.url} ({error}); download it by hand to {file}"
        ) from None
    return file
