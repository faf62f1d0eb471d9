"""The state of a training, and how it is set up from its configuration."""

import logging
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_idc.core.errors import RunError
from wsi_idc.core.provenance import provenance
from wsi_idc.data.normalization import channel_histogram, channel_statistics
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.batch_norm import has_fused_batch_norm, unfold_batch_norm
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.pretrained import (
    Normalization,
    load_imagenet,
    load_weights_file,
    pretraining_patients,
)
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, Architecture, architecture
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import SINGLE_PROCESS, World
from wsi_idc.training.batches import PatchSource
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Loss, inverse_frequency
from wsi_idc.training.optimizer import make_optimizer, running_average
from wsi_idc.training.resolve_config import is_file
from wsi_idc.training.runs import Run
from wsi_idc.training.state import Training

logger = logging.getLogger(__name__)
# The same balance of classes is corrected by either, so the same shift of the odds is undone.
SHIFTING = ("class-weights", "oversample")
_IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
_SYMMETRIC = Normalization((0.5,) * 3, (0.5,) * 3)
_PATCHES_TO_UNFOLD = 256


def build_training(
    config: TrainConfig,
    pack: Pack,
    split: Split,
    *,
    run: Run,
    compute: DeviceConfig,
    world: World = SINGLE_PROCESS,
    micro_batch: int = 0,
) -> Training:
    """Return a training of a resolved configuration at its very beginning; nothing is written.

    The arguments are those of ``train``.

    Raises:
        CheckpointError: Weights are asked for that cannot be had or do not fit.
        RunError: The settings do not fit the model or the number of processes.
    """
    arch = architecture(config.model)
    rows = {role: labelled_rows(pack, split.patients(role)) for role in ("train", "val")}
    labels = pack.index["label"].to_numpy()[rows["train"]].astype(np.int64)
    torch.manual_seed(config.seed)
    classifier = _build_model(config, arch, pack, rows["train"])
    classifier.to(compute.device).to(memory_format=torch.channels_last)
    if world.size > 1 and compute.device.type == "cuda":
        classifier = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    if min(config.batch_size, len(labels)) < world.size:
        raise RunError(
            f"a batch of {min(config.batch_size, len(labels))} cannot be shared by {world.size} "
            "processes; start fewer, or give a larger --batch-size"
        )
    if config.freeze and config.weights == "none":
        logger.warning("--freeze %d trains a head on random features: no weights", config.freeze)
    balance = inverse_frequency(labels) if config.imbalance in SHIFTING else np.ones(2)
    part = -(-config.batch_size // world.size)
    return Training(
        config=config,
        pack=pack,
        split=split,
        run=run,
        compute=compute,
        world=world,
        classifier=classifier,
        model=classifier,
        average=running_average(classifier, config.ema) if config.ema else None,
        optimizer=make_optimizer(classifier, config),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16"),
        objective=_build_objective(config, balance, compute),
        odds_shift=math.log(balance[1] / balance[0]),
        rows=rows,
        micro_batch=min(micro_batch or part, part),
        micro_batch_reduced=False,
        inherited=_pretraining_patients(config, split),
        record=provenance(
            data=str(pack.path),
            data_fingerprint=pack.info.source_fingerprint,
            num_processes=world.size,
        ),
        pending_loss=_no_loss(compute.device),
        source=PatchSource(pack, rows["train"], compute.device),
    )


def _build_objective(
    config: TrainConfig, balance: NDArray[np.float64], compute: DeviceConfig
) -> Loss:
    """Return the loss, with the weights of the classes where these are asked for."""
    weight = balance if config.imbalance == "class-weights" else np.ones(2)
    logger.info("device: %s; class weights: %s", compute, weight.round(3))
    return Loss(
        class_weight=torch.tensor(weight, dtype=torch.float32, device=compute.device),
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma if config.imbalance == "focal" else 0.0,
    )


def _no_loss(device: torch.device) -> Tensor:
    """Return the sum of the losses of no step."""
    # Doubles add up to the same wherever a stop divides the sum; MPS has none.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros((), dtype=dtype, device=device)


def _pretraining_patients(config: TrainConfig, split: Split) -> tuple[str, ...]:
    """Return whom the given weights were trained on, and say so where that spoils val or test."""
    if not is_file(config.weights):
        return ()
    found = pretraining_patients(Path(config.weights))
    held_out = set(split.patients("val")) | set(split.patients("test"))
    if seen := sorted(held_out.intersection(found)):
        logger.warning(
            "%s was trained on %d of the val and test patients (%s first): they are no test of "
            "what begins with it; use the split that it was trained with",
            config.weights,
            len(seen),
            seen[0],
        )
    return found


def _build_model(
    config: TrainConfig, arch: Architecture, pack: Pack, train_rows: NDArray[np.int64]
) -> PatchClassifier:
    """Return the classifier with the weights that it begins with, and the input these want."""
    check_input_px(arch, config.input_size or pack.info.patch_px)
    network = arch.build(len(pack.info.class_names))
    wanted = None
    if config.weights == "imagenet":
        wanted = load_imagenet(network, arch)
    elif config.weights != "none":
        wanted = load_weights_file(network, arch, Path(config.weights))
    mean, std = wanted or _IMAGENET
    if config.normalize == "imagenet":
        mean, std = _IMAGENET
    elif config.normalize == "symmetric":
        mean, std = _SYMMETRIC
    elif config.normalize == "dataset":
        # Of the train patients alone: the others must not tell the model anything.
        mean, std = channel_statistics(_histogram(pack, train_rows))
    classifier = PatchClassifier(
        arch, network, input_px=config.input_size or None, mean=mean, std=std
    )
    if config.weights != "none" and has_fused_batch_norm(network):
        logger.info("the weights' batch norms are folded: unfolding them on train patches")
        some = np.random.default_rng(config.seed).permutation(train_rows)[:_PATCHES_TO_UNFOLD]
        unfold_batch_norm(classifier, torch.from_numpy(pack.patches[np.sort(some)]))
    return classifier


def labelled_rows(pack: Pack, patients: Collection[str]) -> NDArray[np.int64]:
    """Return the positions of all patches of these patients whose label is known."""
    wanted = np.isin(pack.patient_of, list(patients)) & (pack.index["label"].to_numpy() >= 0)
    return np.flatnonzero(wanted)


def _histogram(pack: Pack, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros((3, 256), np.int64)
    for start in range(0, len(rows), 4096):
        total += channel_histogram(pack.patches[rows[start : start + 4096]])
    return total
