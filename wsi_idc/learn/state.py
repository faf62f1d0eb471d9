"""The state of a training: set up from its configuration, saved, and read back."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_idc.config import TrainConfig
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.data.statistics import channel_histogram, channel_statistics
from wsi_idc.errors import RunError
from wsi_idc.learn.runs import Run
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_dict, save_dict
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.device import Compute
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, architecture, load_imagenet
from wsi_idc.provenance import provenance

logger = logging.getLogger(__name__)

STATE_FORMAT = "wsi-idc-training-state"
RATE_FROM_SCRATCH = 1e-3
RATE_PRETRAINED = 3e-4


@dataclass
class Place:
    """Where a training is.

    Attributes:
        epoch: Epochs done.
        step: Steps done in the present epoch.
        loss_sum: Sum of the loss over those steps.
        seconds: Spent in the present epoch.
        best_ap: Largest val average precision so far.
        best_epoch: Where it was, counted from 1.
        history: One record an epoch done.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_ap: float = -math.inf
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Training:
    """A training and all that it needs."""

    config: TrainConfig
    pack: Pack
    split: Split
    run: Run
    compute: Compute
    classifier: PatchClassifier
    optimizer: torch.optim.Optimizer
    class_weight: Tensor  # (2,)
    rows: dict[str, NDArray[np.int64]]  # role to rows of the pack with a known label
    record: dict[str, Any]  # provenance
    place: Place = field(default_factory=Place)

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches of the train rows; a last one of few patches would upset batch norm."""
        return max(1, len(self.rows["train"]) // self.config.batch_size)


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the weights and the learning rate that it leaves open."""
    weights = config.weights
    if weights == "auto":
        weights = "imagenet" if architecture(config.model).imagenet is not None else "none"
    rate = RATE_PRETRAINED if weights == "imagenet" else RATE_FROM_SCRATCH
    return replace(config, weights=weights, learning_rate=config.learning_rate or rate)


def set_up(
    config: TrainConfig, pack: Pack, split: Split, *, run: Run, compute: Compute
) -> Training:
    """Return a training of a resolved configuration at its very beginning; nothing is written.

    Raises:
        CheckpointError: ImageNet weights are asked for and not on this machine.
        RunError: The model has no ImageNet weights.
    """
    arch = architecture(config.model)
    torch.manual_seed(config.seed)
    network = arch.build(len(pack.info.class_names))
    rows = {role: _labelled_rows(pack, split.patients(role)) for role in ("train", "val")}
    if config.weights == "imagenet" and arch.imagenet is None:
        raise RunError(f"{config.model} has no ImageNet weights; use --weights none")
    if config.weights == "imagenet":
        load_imagenet(network, arch)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        # Of the train patients alone: the others must not tell the model anything.
        mean, std = channel_statistics(_histogram(pack, rows["train"]))
    classifier = PatchClassifier(arch, network, input_px=arch.input_px, mean=mean, std=std)
    classifier.to(compute.device).to(memory_format=torch.channels_last)
    labels = pack.index["label"].to_numpy()[rows["train"]]
    counts = np.bincount(labels, minlength=2)
    weight = np.ones(2)
    if config.imbalance == "class-weights":
        weight = len(labels) / (2 * counts)
    logger.info("device: %s; class weights: %s", compute, weight.round(3))
    return Training(
        config=config,
        pack=pack,
        split=split,
        run=run,
        compute=compute,
        classifier=classifier,
        optimizer=torch.optim.AdamW(
            classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        ),
        class_weight=torch.tensor(weight, dtype=torch.float32, device=compute.device),
        rows=rows,
        record=provenance(data=str(pack.path), data_fingerprint=pack.info.source_fingerprint),
    )


def _labelled_rows(pack: Pack, patients: list[str]) -> NDArray[np.int64]:
    wanted = np.isin(pack.patient_of, patients) & (pack.index["label"].to_numpy() >= 0)
    return np.flatnonzero(wanted)


def _histogram(pack: Pack, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros((3, 256), np.int64)
    for start in range(0, len(rows), 4096):
        total += channel_histogram(pack.patches[rows[start : start + 4096]])
    return total


def as_checkpoint(
    training: Training,
    *,
    temperature: float = 1.0,
    threshold: float = 0.5,
    found: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Return the present weights as a checkpoint, uncalibrated unless said otherwise."""
    classifier, info = training.classifier, training.pack.info
    spec = InputSpec(
        patch_px=info.patch_px,
        mpp=info.mpp,
        input_px=classifier.input_px,
        mean=tuple(classifier.mean.flatten().tolist()),
        std=tuple(classifier.std.flatten().tolist()),
    )
    return Checkpoint(
        architecture=training.config.model,
        state=classifier.network.state_dict(),
        input=spec,
        class_names=info.class_names,
        cam_layer=classifier.arch.cam_layer,
        temperature=temperature,
        threshold=threshold,
        metrics=found or {},
        split=dict(training.split.roles),
        split_spec=training.split.spec,
        provenance=training.record,
        config=training.config.as_dict(),
    )


def save_state(training: Training) -> None:
    """Write the run's last.pt in one atomic step."""
    content = {
        "format": STATE_FORMAT,
        "network": training.classifier.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "place": asdict(training.place),
    }
    save_dict(training.run.last, content)


def resume(training: Training) -> None:
    """Go on where the run's last.pt is.

    Raises:
        RunError: The state is not of this run.
    """
    path = training.run.last
    content = load_dict(path, kind=STATE_FORMAT)
    try:
        training.classifier.network.load_state_dict(content["network"])
        training.optimizer.load_state_dict(content["optimizer"])
        training.place = Place(**content["place"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{path}: the state does not fit this run ({type(error).__name__}); "
            "--overwrite trains anew"
        ) from None
    logger.info("going on in epoch %d, step %d", training.place.epoch + 1, training.place.step + 1)
