"""What a training is asked to do: its configuration with nothing left open, and its data."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import RunError
from wsi_idc.core.files import sha256
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.registry import architecture
from wsi_idc.training.config import TrainConfig

RATE_FROM_SCRATCH = 1e-3
RATE_PRETRAINED = 3e-4
SGD_RATE_FACTOR = 10


def resolved_config(config: TrainConfig, pack: Pack, split: Split) -> dict[str, Any]:
    """Return all that decides a training's weights, JSON-ready."""
    roles = json.dumps(sorted(split.roles.items()))
    return {
        **resolve(config).of_weights,
        # Of a file what is in it counts, not its path.
        **({"weights": found} if (found := weights_fingerprint(config)) else {}),
        "split": split.spec,
        "data": pack.info.source_fingerprint,
        "mpp": pack.info.mpp,
        "roles": hashlib.sha256(roles.encode()).hexdigest(),
    }


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the configuration with all that it leaves open.

    Raises:
        CheckpointError: There is no such model.
    """
    arch = architecture(config.model)
    weights = config.weights
    if weights == "auto":
        weights = "imagenet" if arch.imagenet is not None else "none"
    rate = RATE_FROM_SCRATCH if weights == "none" else RATE_PRETRAINED
    rate *= SGD_RATE_FACTOR if config.optimizer == "sgd" else 1
    normalize = config.normalize
    if normalize == "auto" and weights == "none":
        normalize = "dataset"
    return replace(
        config,
        model=arch.name,
        weights=weights,
        normalize=normalize,
        input_size=config.input_size or arch.input_px or 0,
        learning_rate=config.learning_rate or rate,
    )


def is_file(weights: str) -> bool:
    """Return whether the weights to start from are those of a file."""
    return weights not in ("auto", "imagenet", "none")


def weights_fingerprint(config: TrainConfig) -> str | None:
    """Return the SHA-256 of the file to start from, None where there is none."""
    if not is_file(config.weights):
        return None
    try:
        return sha256(Path(config.weights))
    except OSError as error:
        raise RunError(
            f"--weights {config.weights}: {error.strerror}; give imagenet, none or a .pt file"
        ) from None
