"""Resolved training configuration (no ``auto`` values) and its data; importing needs no torch."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_idc.core.errors import RunError
from wsi_idc.core.files import sha256
from wsi_idc.training.config import TrainConfig

if TYPE_CHECKING:
    from wsi_idc.data.pack import Pack
    from wsi_idc.data.splits import Split

RATE_FROM_SCRATCH = 1e-3
RATE_PRETRAINED = 3e-4
SGD_RATE_FACTOR = 10
# Input size in px (0: that of the patches) and whether there are ImageNet weights, of the models
# for which ``models.registry``, which imports torch, need not be asked.
KNOWN_MODELS = {
    "cnn": (0, False),
    "cnn-bn": (0, False),
    "resnet18": (224, True),
    "resnet50": (224, True),
    "efficientnet-b0": (224, True),
}


def resolved_config(config: TrainConfig, pack: "Pack", split: "Split") -> dict[str, Any]:
    """Return all settings and fingerprints that decide the weights of a training, JSON-ready."""
    settings = resolve(config).training_settings
    if is_weights_file(config.weights):
        # The content of the file counts, not its path.
        settings["weights"] = weights_fingerprint(config)
    roles = json.dumps(sorted(split.roles.items()))
    return {
        **settings,
        "split": split.spec,
        "data": pack.info.source_fingerprint,
        "mpp": pack.info.mpp,
        "roles": hashlib.sha256(roles.encode()).hexdigest(),
    }


def resolve(config: TrainConfig) -> TrainConfig:
    """Replace the values that a configuration leaves open by those of its model.

    Raises:
        CheckpointError: The model does not exist.
    """
    name = config.model.replace("_", "-")
    if name in KNOWN_MODELS:
        input_px, has_imagenet = KNOWN_MODELS[name]
    else:
        from wsi_idc.models.registry import architecture

        arch = architecture(config.model)
        name, input_px, has_imagenet = arch.name, arch.input_px or 0, arch.imagenet is not None
    weights = config.weights
    if weights == "auto":
        weights = "imagenet" if has_imagenet else "none"
    rate = RATE_FROM_SCRATCH if weights == "none" else RATE_PRETRAINED
    rate *= SGD_RATE_FACTOR if config.optimizer == "sgd" else 1
    is_open = config.normalize == "auto" and weights == "none"
    return replace(
        config,
        model=name,
        weights=weights,
        normalize="dataset" if is_open else config.normalize,
        input_size=config.input_size or input_px,
        learning_rate=config.learning_rate or rate,
    )


def is_weights_file(weights: str) -> bool:
    """Return whether a value of ``TrainConfig.weights`` is the path of a file."""
    return weights not in ("auto", "imagenet", "none")


def weights_fingerprint(config: TrainConfig) -> str | None:
    """Compute the SHA-256 of the file of initial weights; None without such a file.

    Raises:
        RunError: The file cannot be read.
    """
    if not is_weights_file(config.weights):
        return None
    try:
        return sha256(Path(config.weights))
    except OSError as error:
        raise RunError(
            f"--weights {config.weights}: {error.strerror}; give imagenet, none or a .pt file"
        ) from None
