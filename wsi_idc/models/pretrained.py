"""Weights that a training starts from: ImageNet's, or those of a file."""

import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.core.files import sha256
from wsi_idc.models.checkpoint import FORMAT, load_checkpoint
from wsi_idc.models.registry import ARCHITECTURES, Architecture, architecture
from wsi_idc.models.serialization import load_state, load_weights_only

_MAX_NAMED = 3
# Heads on the way, for training alone, that no network here is built with.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's files are older than its code, where a name holds no dot.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class Normalization(NamedTuple):
    """How the weights want images scaled: mean and std of each channel, 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def weights_file(arch: Architecture) -> Path:
    """Return where torchvision keeps the ImageNet weights of ``arch`` on this machine.

    Raises:
        CheckpointError: There are none for this model.
    """
    return imagenet_folder() / _imagenet(arch).url.rsplit("/", 1)[-1]


def imagenet_folder() -> Path:
    """Return torchvision's cache of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_imagenet() -> list[str]:
    """Return the models whose ImageNet weights are in torchvision's cache, by our names."""
    weights = {arch.name: arch.imagenet for arch in ARCHITECTURES.values() if arch.imagenet}
    ours = {name.replace("-", "_") for name in weights}
    for name in torchvision.models.list_models(module=torchvision.models):
        if name not in ours:
            weights[name] = torchvision.models.get_model_weights(name).DEFAULT
    folder = imagenet_folder()
    return [name for name, of in weights.items() if (folder / of.url.rsplit("/", 1)[-1]).exists()]


def _imagenet(arch: Architecture) -> torchvision.models.WeightsEnum:
    if arch.imagenet is None:
        raise CheckpointError(f"{arch.name} is trained from scratch; it has no ImageNet weights")
    return arch.imagenet


def fetch_imagenet(arch: Architecture) -> Path:
    """Download the ImageNet weights of ``arch`` into torchvision's cache; return the file.

    A file that is there already, whole, is left as it is.

    Raises:
        CheckpointError: There are none for this model, or the download failed.
    """
    url, file = _imagenet(arch).url, weights_file(arch)
    digest = file.stem.rsplit("-", 1)[-1]  # torchvision's names end in the start of the SHA-256
    try:
        if not file.exists() or not sha256(file).startswith(digest):
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest)
    except (OSError, RuntimeError, HTTPException) as error:
        raise CheckpointError(
            f"could not fetch {url} ({error}); download it by hand to {file}"
        ) from None
    return file


def load_imagenet(network: nn.Module, arch: Architecture) -> Normalization:
    """Fill all but the head of ``network`` with ImageNet weights from torchvision's cache.

    Nothing is downloaded: compute nodes have no internet.

    Raises:
        CheckpointError: There are none for this model, they are not in the cache, or damaged.
    """
    file = weights_file(arch)
    if not file.exists():
        raise CheckpointError(
            f"ImageNet weights of {arch.name} are not on this machine ({file}); run "
            f"`wsi-idc fetch-weights {arch.name}` where there is internet, or train with "
            "--weights none"
        )
    remedy = f"delete it and run `wsi-idc fetch-weights {arch.name}` again"
    _fill(network, arch, load_weights_only(file, remedy=remedy), path=file, remedy=remedy)
    if arch.name in ("googlenet", "inception_v3"):
        # torchvision's own networks turn its usual scale into this one, the weights' true one.
        return Normalization((0.5,) * 3, (0.5,) * 3)
    scale = _imagenet(arch).transforms()
    return Normalization(tuple(scale.mean), tuple(scale.std))


def load_weights_file(network: nn.Module, arch: Architecture, path: Path) -> Normalization | None:
    """Fill ``network`` with the weights of a file.

    A checkpoint of this program gives its head too, for it has the same classes. Of a state dict
    of torchvision's network, of any number of classes, all but the head is taken.

    Returns:
        How the checkpoint scales its images; None for a state dict, which does not say.

    Raises:
        CheckpointError: The file is missing or damaged, or of another architecture.
    """
    remedy = f"give a checkpoint or a state dict of {arch.name}"
    content = load_weights_only(path, remedy=remedy)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _fill(network, arch, content, path=path, remedy=remedy)
        return None
    checkpoint = load_checkpoint(path)
    if architecture(checkpoint.architecture) != arch:
        raise CheckpointError(f"{path}: a checkpoint of {checkpoint.architecture}; {remedy}")
    load_state(network, checkpoint.state)
    return Normalization(checkpoint.input.mean, checkpoint.input.std)


def pretraining_patients(path: Path) -> tuple[str, ...]:
    """Return the patients that the weights in a file were trained on, as far as it says so.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    content = load_weights_only(path, remedy="give a checkpoint or a state dict")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return ()
    return tuple(sorted(load_checkpoint(path).patients("train")))


def _fill(network: nn.Module, arch: Architecture, content: Any, *, path: Path, remedy: str) -> None:
    """Fill all but the head of ``network`` from a state dict; CheckpointError if it is none."""
    own: dict[str, Tensor] = network.state_dict()
    head = f"{arch.head}."
    given = {
        name: value
        for name, value in _state_dict(content, path=path, remedy=remedy).items()
        if not name.startswith((head, *_AUXILIARY))
    }
    misfits = [f"no {name}" for name in own if not name.startswith(head) and name not in given]
    # Files older than this count do without.
    misfits = [text for text in misfits if not text.endswith("num_batches_tracked")]
    misfits += [f"unknown {name}" for name in given if name not in own]
    misfits += [
        f"{name} {_shape(value)} instead of {_shape(own[name])}"
        for name, value in given.items()
        if name in own and value.shape != own[name].shape
    ]
    if misfits:
        more = f" and {len(misfits) - _MAX_NAMED} more" if len(misfits) > _MAX_NAMED else ""
        what = ", ".join(misfits[:_MAX_NAMED]) + more
        raise CheckpointError(f"{path}: not weights of {arch.name}: {what}; {remedy}")
    if not all(torch.isfinite(value).all() for value in given.values()):
        raise CheckpointError(f"{path}: a weight is not a finite number; {remedy}")
    load_state(network, own | given)


def _state_dict(content: Any, *, path: Path, remedy: str) -> Mapping[str, Tensor]:
    """Return the parameters by the names that the network has for them."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not _is_state_dict(content):
        raise CheckpointError(f"{path}: not a state dict of weights; {remedy}")
    if all(name.startswith("module.") for name in content):  # DataParallel was around it
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in content.items()}


def _is_state_dict(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        for name, value in content.items()
    )


def _shape(value: Tensor) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar"
