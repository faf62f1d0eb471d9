"""Frozen encoder of a linear probe: its checkpoint names the weights, but does not contain them."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsi_idc.core.constants import NUM_CLASSES, SHORT_SHA
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.architecture import OTHER_WEIGHTS, Architecture, build_empty

PUBLISHED = "imagenet"  # as the option --weights
WEIGHTS_ENV = "WSI_IDC_WEIGHTS"


@dataclass(frozen=True)
class EncoderSource:
    """Source of the weights of a frozen encoder.

    Attributes:
        weights: "imagenet" for the published weights of the architecture, or the path of a file.
        sha256: SHA-256 of the weights of all layers except the head.
        licence: Licence of the published weights; None if it is not known.
    """

    weights: str
    sha256: str
    licence: str | None = None

    def __str__(self) -> str:
        return "published weights" if self.weights == PUBLISHED else self.weights


def head_state(arch: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state dict that belong to the head."""
    return {name: value for name, value in state.items() if name.startswith(f"{arch.head}.")}


def encoder_digest(arch: Architecture, state: Mapping[str, Tensor]) -> Any:
    """Return a hashlib object that has hashed the weights of all layers except the head.

    The hash depends on the name, type, shape and values of each parameter and buffer.
    """
    digest: Any = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not name.startswith(f"{arch.head}."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest


def load_encoder(
    arch: Architecture, source: EncoderSource, *, checkpoint: Path
) -> dict[str, Tensor]:
    """Load the weights of an encoder; return a state dict in which the head has no values.

    Published weights come from the caches of torchvision and the Hugging Face hub. A file of
    weights may be at the path in the environment variable ``WSI_IDC_WEIGHTS`` (a file, or a folder
    with a file of the same name), at its path during the training, or beside the checkpoint.

    Raises:
        CheckpointError: The weights are not on this machine, or are not those of the training.
    """
    from wsi_idc.models import pretrained  # imports torchvision, which takes two seconds

    network = build_empty(arch.build, NUM_CLASSES, device="cpu")
    found_in = "this machine"
    try:
        if source.weights == PUBLISHED:
            pretrained.load_imagenet(network, arch)
        else:
            path = _find_file(Path(source.weights), checkpoint)
            pretrained.load_state_dict_file(network, arch, path)
            found_in = str(path)
    except CheckpointError as error:
        reason = str(error).removesuffix(OTHER_WEIGHTS)
        raise CheckpointError(f"{checkpoint} contains only the head: {reason}") from None
    state = network.state_dict()
    if (sha256 := encoder_digest(arch, state).hexdigest()) != source.sha256:
        raise CheckpointError(
            f"{checkpoint} contains only the head, and needs weights of {arch.name} with the "
            f"SHA-256 {source.sha256[:SHORT_SHA]}, but those of {found_in} have "
            f"{sha256[:SHORT_SHA]}; {_remedy(arch, source)}"
        )
    return dict(state)


def _find_file(recorded: Path, checkpoint: Path) -> Path:
    places = [recorded, checkpoint.parent / recorded.name]
    if given := os.environ.get(WEIGHTS_ENV):
        path = Path(given)
        places.insert(0, path / recorded.name if path.is_dir() else path)
    for path in places:
        if path.is_file():
            return path
    raise CheckpointError(
        f"the weights of its encoder are in none of {', '.join(map(str, places))}; copy the file "
        f"to one of them, or set {WEIGHTS_ENV} to its path"
    )


def _remedy(arch: Architecture, source: EncoderSource) -> str:
    if source.weights == PUBLISHED:
        return (
            "install the versions of torchvision and timm that wsi-idc info shows, or train "
            f"{arch.name} again"
        )
    return f"set {WEIGHTS_ENV} to the file with which it was trained"
