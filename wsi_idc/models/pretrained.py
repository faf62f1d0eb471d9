"""Initial weights of a training: ImageNet weights, or weights from a file of the user."""

import logging
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import sha256
from wsi_idc.core.text import shorten_list
from wsi_idc.models.architecture import OTHER_WEIGHTS, Architecture, HubWeights
from wsi_idc.models.checkpoint import (
    FORMAT,
    is_dense,
    load_checkpoint,
    load_state,
    load_tensors,
    read_checkpoint,
)
from wsi_idc.models.checkpoint_files import find_weights
from wsi_idc.models.encoder_source import PUBLISHED, EncoderSource, encoder_digest
from wsi_idc.models.light_torchvision import import_torchvision
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, MODEL_NAMES, architecture

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

logger = logging.getLogger(__name__)

# Auxiliary heads. Only torchvision's own training uses them; networks here do not have them.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Names in torchvision's DenseNet files have a dot that the names in its code do not have.
# Licences that permit to pass on the weights.
_OPEN_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
}
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, to normalize images with values in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def usual_normalization(arch: Architecture) -> Normalization:
    """Return the normalization of a file of weights that states none."""
    if isinstance(arch.imagenet, HubWeights):
        return Normalization(arch.imagenet.mean, arch.imagenet.std)
    return Normalization(IMAGENET_MEAN, IMAGENET_STD)


def published_licence(arch: Architecture) -> str | None:
    """Return the licence of the published weights; None if it is not known."""
    if isinstance(arch.imagenet, HubWeights):
        return arch.imagenet.licence
    return "bsd-3-clause" if arch.imagenet else None


def check_imagenet(arch: Architecture) -> None:
    """Raise CheckpointError if the published weights of ``arch`` are not on this machine.

    Weights are not downloaded here, because compute nodes have no internet.
    """
    if isinstance(arch.imagenet, HubWeights):
        from wsi_idc.models.timm_models import build_published

        build_published(arch, 2)
        return
    file = weights_file(arch)
    if not file.exists():
        raise CheckpointError(
            f"ImageNet weights of {arch.name} are not on this machine ({file}); run "
            f"`wsi-idc fetch-weights {arch.name}` on a machine with internet access{OTHER_WEIGHTS}"
        )


def weights_file(arch: Architecture) -> Path:
    """Return the path of the ImageNet weights of ``arch`` in torchvision's cache folder."""
    return _cached_file(_imagenet(arch))


def imagenet_folder() -> Path:
    """Return the folder in which torchvision stores downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _cached_file(weights: "WeightsEnum") -> Path:
    return imagenet_folder() / weights.url.rsplit("/", 1)[-1]


def cached_imagenet() -> list[str]:
    """Return the names of the models whose ImageNet weights are in torchvision's cache folder."""
    torchvision = import_torchvision()
    architectures = map(architecture, MODEL_NAMES)
    weights = {arch.name: _imagenet(arch) for arch in architectures if arch.imagenet}
    for name in torchvision.models.list_models(module=torchvision.models):
        if name.replace("_", "-") not in weights:
            weights[name] = torchvision.models.get_model_weights(name).DEFAULT
    return [name for name, choice in weights.items() if _cached_file(choice).exists()]


def _imagenet(arch: Architecture) -> "WeightsEnum":
    if arch.imagenet is None or isinstance(arch.imagenet, HubWeights):
        raise CheckpointError(f"{arch.name} has no ImageNet weights; train it with --weights none")
    return arch.imagenet


def fetch_imagenet(arch: Architecture) -> Path:
    """Download the published weights of ``arch``; return the path of the file or its folder.

    The folder is the cache of torchvision or of the Hugging Face hub. If it already contains the
    complete file, nothing is downloaded.

    Raises:
        CheckpointError: There are no ImageNet weights of ``arch``, or the download failed.
    """
    if isinstance(arch.imagenet, HubWeights):
        from wsi_idc.models.timm_models import fetch_hub_weights

        return fetch_hub_weights(arch)
    url, file = _imagenet(arch).url, weights_file(arch)
    digest = file.stem.rsplit("-", 1)[-1]  # the file name ends in the first digits of the SHA-256
    try:
        if not file.exists() or not sha256(file).startswith(digest):
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest)
    except (OSError, RuntimeError, HTTPException) as error:
        raise CheckpointError(
            f"could not fetch {url} ({error}); download it with another program to {file}"
        ) from None
    return file


def load_imagenet(network: nn.Module, arch: Architecture) -> Normalization:
    """Load published weights of this machine into all layers except the head.

    Raises:
        CheckpointError: The weights are not on this machine, or the file is damaged.
    """
    if isinstance(arch.imagenet, HubWeights):
        from wsi_idc.models.timm_models import load_hub_weights

        load_hub_weights(network, arch)
        return Normalization(arch.imagenet.mean, arch.imagenet.std)
    check_imagenet(arch)
    file = weights_file(arch)
    remedy = f"delete it and run `wsi-idc fetch-weights {arch.name}` again"
    content = load_tensors(file, remedy=remedy)[0]
    _set_weights(network, arch, content, path=file, remedy=remedy)
    if arch.name in ("googlenet", "inception_v3"):
        # These weights need this normalization. torchvision's own networks convert images from the
        # usual normalization to this one, but the networks here do not.
        return Normalization((0.5,) * 3, (0.5,) * 3)
    transforms = _imagenet(arch).transforms()
    return Normalization(tuple(transforms.mean), tuple(transforms.std))


def load_weights_file(network: nn.Module, arch: Architecture, path: Path) -> Normalization | None:
    """Load weights from a file or folder into ``network``; return the normalization of the file.

    The file is a checkpoint of this program, or a state dict of torchvision or timm. A checkpoint
    has the same classes as ``network``, so the weights of the head are loaded, too. A state dict
    may have other classes, so the head keeps its weights. It has no normalization: return None.

    Raises:
        CheckpointError: The file is missing or damaged, or has weights of another architecture.
    """
    path, remedy = find_weights(path), f"give a checkpoint or a state dict of {arch.name}"
    content, _ = load_tensors(path, remedy=remedy)
    if not _is_checkpoint(content):
        _set_weights(network, arch, content, path=path, remedy=remedy)
        return None
    checkpoint = load_checkpoint(path)
    if architecture(checkpoint.architecture) != arch:
        raise CheckpointError(f"{path} is a checkpoint of {checkpoint.architecture}; {remedy}")
    load_state(network, checkpoint.state)
    return Normalization(checkpoint.input.mean, checkpoint.input.std)


def load_state_dict_file(network: nn.Module, arch: Architecture, path: Path) -> None:
    """Load a state dict of torchvision or timm into all layers of ``network`` except the head.

    Raises:
        CheckpointError: The file is missing or damaged, or has weights of another architecture.
    """
    remedy = f"give a state dict of {arch.name}"
    _set_weights(network, arch, load_tensors(path, remedy=remedy)[0], path=path, remedy=remedy)


def encoder_source(
    arch: Architecture, weights: str, state: Mapping[str, Tensor]
) -> EncoderSource | None:
    """Return the source of a frozen encoder; None if only its checkpoint can have the weights.

    Args:
        arch: Architecture of the encoder.
        weights: Initial weights: "imagenet", "none", or the path of a file or folder.
        state: State dict with these weights.
    """
    if weights == "none":
        return None
    if weights == PUBLISHED:
        sha256 = encoder_digest(arch, state).hexdigest()
        return EncoderSource(weights, sha256, published_licence(arch))
    path = find_weights(Path(weights)).absolute()
    content = load_tensors(path, remedy="give a checkpoint or a state dict")[0]
    if _is_checkpoint(content):  # weights of the user, which another training may replace
        return read_checkpoint(path).encoder
    return EncoderSource(str(path), encoder_digest(arch, state).hexdigest())


def check_storable(source: EncoderSource, model: str) -> None:
    """Check that a checkpoint may contain the weights of an encoder.

    Log a warning if the weights come from a file, because their licence is not known.

    Raises:
        CheckpointError: The licence of the published weights is not known to permit to share them.
    """
    if source.weights != PUBLISHED:
        logger.warning(
            "the checkpoint contains the weights of %s: read their licence before you share it",
            source.weights,
        )
    elif str(source.licence).lower() not in _OPEN_LICENCES:
        raise CheckpointError(
            f"the licence of {model} ({source.licence or 'not known'}) is not known to permit to "
            "share its weights; leave out --store-encoder"
        )


def pretraining_patients(path: Path) -> tuple[str, ...]:
    """Return the patients on which a checkpoint file was trained; () if it is a state dict."""
    path = find_weights(path)
    content = load_tensors(path, remedy="give a checkpoint or a state dict")[0]
    return tuple(sorted(read_checkpoint(path).patients("train"))) if _is_checkpoint(content) else ()


def _is_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def _set_weights(
    network: nn.Module, arch: Architecture, content: Any, *, path: Path, remedy: str
) -> None:
    """Load the values of a state dict into all layers of ``network`` except the head."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    is_state_dict = isinstance(content, dict) and all(
        isinstance(name, str) and is_dense(value) for name, value in content.items()
    )
    if not is_state_dict or not content:
        raise CheckpointError(f"{path}: not a state dict of weights; {remedy}")
    if all(name.startswith("module.") for name in content):  # DataParallel adds this prefix
        content = {name.removeprefix("module."): value for name, value in content.items()}
    own: dict[str, Tensor] = network.state_dict()
    skipped = (f"{arch.head}.", *_AUXILIARY, *arch.unused)
    values = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in content.items()}
    if f"{arch.prefix}conv_stem.weight" in own and "_conv_stem.weight" in values:
        # Files of the package efficientnet-pytorch: other names, in the same order.
        values = dict(zip(own, values.values(), strict=False))
    if not own.keys() & values.keys():
        values = {f"{arch.prefix}{name}": value for name, value in values.items()}
    values = {name: value for name, value in values.items() if not name.startswith(skipped)}
    # Files of old versions of torch have no num_batches_tracked, so this name may be missing.
    mismatches = [
        f"no {name}"
        for name in own
        if not (name in values or name.startswith(skipped) or name.endswith("batches_tracked"))
    ]
    mismatches += [f"unknown {name}" for name in values if name not in own]
    mismatches += [
        f"{name} {_shape_text(value)} instead of {_shape_text(own[name])}"
        for name, value in values.items()
        if name in own and value.shape != own[name].shape
    ]
    if mismatches:
        listed = shorten_list(mismatches, max_num=3)
        raise CheckpointError(f"{path}: not weights of {arch.name}: {listed}; {remedy}")
    if not all(torch.isfinite(value).all() for value in values.values()):
        raise CheckpointError(f"{path}: a weight is not a finite number; {remedy}")
    load_state(network, own | values)


def _shape_text(value: Tensor) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar"
