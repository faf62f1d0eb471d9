"""Setup of a training: the model with its initial weights, the loss, the optimizer, the data."""

import logging
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_idc.core.errors import RunError
from wsi_idc.core.provenance import provenance
from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack
from wsi_idc.data.pixels import channel_histogram, channel_statistics
from wsi_idc.data.splits import Split
from wsi_idc.models import pretrained
from wsi_idc.models.batch_norm import has_fused_batch_norm, unfold_batch_norm
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, architecture
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import SINGLE_PROCESS, World
from wsi_idc.training.batches import PatchSource
from wsi_idc.training.config import TrainConfig, is_weights_file
from wsi_idc.training.loss import Loss, inverse_frequency
from wsi_idc.training.optimizer import build_average, build_optimizer
from wsi_idc.training.runs import Run
from wsi_idc.training.state import Training

logger = logging.getLogger(__name__)
_IMAGENET = pretrained.Normalization(IMAGENET_MEAN, IMAGENET_STD)
_SYMMETRIC = pretrained.Normalization((0.5,) * 3, (0.5,) * 3)
_PATCHES_TO_UNFOLD = 256
_PATCHES_PER_READ = 4096


def build_training(
    config: TrainConfig,
    pack: Pack,
    split: Split,
    *,
    run: Run,
    device_config: DeviceConfig,
    world: World = SINGLE_PROCESS,
    micro_batch: int = 0,
) -> Training:
    """Build the objects of a training, before its first step. No file is written.

    ``config`` is a result of ``resolve``; the other arguments are the same as those of ``train``.
    """
    if config.cell_loss:
        _check_cell_loss(config.model, device_config)
    rows = {role: labeled_rows(pack, split.patients(role)) for role in ("train", "val")}
    labels = pack.index["label"].to_numpy()[rows["train"]].astype(np.int64)
    torch.manual_seed(config.seed)
    device = device_config.device
    classifier = _build_model(config, pack, rows["train"])
    classifier.to(device).to(memory_format=torch.channels_last)
    if world.size > 1 and device.type == "cuda":
        classifier = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    if (batch_size := min(config.batch_size, len(labels))) < world.size:
        raise RunError(
            f"a batch of {batch_size} patches is too small for {world.size} processes; start "
            "fewer processes, or give a larger --batch-size"
        )
    if config.freeze and config.weights == "none":
        logger.warning(
            "--freeze %s without initial weights: the head trains on random features", config.freeze
        )
    # Class weights and oversampling both give the two classes the same total weight. Therefore both
    # shift the log odds by the same amount.
    is_balanced = config.imbalance in ("class-weights", "oversample")
    balance = inverse_frequency(labels) if is_balanced else np.ones(2)
    class_weight = balance if config.imbalance == "class-weights" else np.ones(2)
    logger.info("device: %s; class weights: %s", device_config, class_weight.round(3))
    has_average = config.ema > 0 and not config.is_probe
    is_resident = False if config.is_probe else None  # a probe reads each patch at most once
    max_micro_batch = -(-config.batch_size // world.size)
    # In float64, a stopped and resumed training has the same loss sum. MPS has no float64.
    loss_dtype = torch.float32 if device.type == "mps" else torch.float64
    return Training(
        config=config,
        pack=pack,
        split=split,
        run=run,
        device_config=device_config,
        world=world,
        classifier=classifier,
        model=classifier,
        average=build_average(classifier, config.ema) if has_average else None,
        optimizer=build_optimizer(classifier, config),
        scaler=torch.amp.GradScaler(device.type, enabled=device_config.precision == "fp16"),
        loss=Loss(
            class_weight=torch.tensor(class_weight, dtype=torch.float32, device=device),
            label_smoothing=config.label_smoothing,
            focal_gamma=config.focal_gamma if config.imbalance == "focal" else 0.0,
        ),
        log_odds_shift=math.log(balance[1] / balance[0]),
        rows=rows,
        micro_batch=min(micro_batch or max_micro_batch, max_micro_batch),
        micro_batch_reduced=False,
        pretraining_patients=_pretraining_patients(config, split),
        provenance=provenance(
            data=str(pack.path),
            data_fingerprint=pack.info.source_fingerprint,
            num_processes=world.size,
        ),
        pending_loss=torch.zeros((), dtype=loss_dtype, device=device),
        source=PatchSource(pack, rows["train"], device, resident=is_resident),
    )


def _check_cell_loss(model: str, device_config: DeviceConfig) -> None:
    """Raise RunError if a network or a device does not support the cell loss."""
    arch = architecture(model)
    if not arch.closed_form:
        raise RunError(
            f"--cell-loss needs average pooling and a linear layer after the last feature map, and "
            f"{arch.name} has other layers there; leave out --cell-loss, or choose another --model"
        )
    if device_config.compiled:
        raise RunError("--cell-loss does not work with --compile; leave out one of them")


def labeled_rows(pack: Pack, patients: Collection[str]) -> NDArray[np.int64]:
    """Find all labeled patches of ``patients``; return their indices in the pack, shape (n,)."""
    is_chosen = np.isin(pack.patient_of, list(patients))
    return np.flatnonzero(is_chosen & (pack.index["label"].to_numpy() >= 0))


def _pretraining_patients(config: TrainConfig, split: Split) -> tuple[str, ...]:
    """Return the patients on which the initial weights were trained.

    Log a warning if one of these patients is in val or test.
    """
    if not is_weights_file(config.weights):
        return ()
    patients = pretrained.pretraining_patients(Path(config.weights))
    held_out = set(split.patients("val")) | set(split.patients("test"))
    if seen := sorted(held_out.intersection(patients)):
        logger.warning(
            "%s was trained on %s of val and test (first: %s): the metrics of these "
            "patients will be too good; use the split of these weights",
            config.weights,
            count(len(seen), "patient"),
            seen[0],
        )
    return patients


def _build_model(config: TrainConfig, pack: Pack, train_rows: NDArray[np.int64]) -> PatchClassifier:
    """Build the classifier with its initial weights and the matching input normalization."""
    arch = architecture(config.model)
    check_input_px(arch, config.input_size or pack.info.patch_px)
    network = arch.build(len(pack.info.class_names))
    normalization: pretrained.Normalization | None = None
    if config.weights == "imagenet":
        normalization = pretrained.load_imagenet(network, arch)
    elif config.weights != "none":
        normalization = pretrained.load_weights_file(network, arch, Path(config.weights))
    if config.normalize == "dataset":
        # Use the train patients only: the model must not depend on the val and test patients.
        histogram = np.zeros((3, 256), np.int64)
        for start in range(0, len(train_rows), _PATCHES_PER_READ):
            histogram += channel_histogram(pack.patches[train_rows[start:][:_PATCHES_PER_READ]])
        normalization = pretrained.Normalization(*channel_statistics(histogram))
    elif config.normalize != "auto":
        normalization = _IMAGENET if config.normalize == "imagenet" else _SYMMETRIC
    mean, std = normalization or pretrained.usual_normalization(arch)
    classifier = PatchClassifier(
        *(arch, network),
        input_px=config.input_size or None,
        mean=mean,
        std=std,
        interpolation=config.interpolation,
    )
    if config.weights != "none" and not config.is_probe and has_fused_batch_norm(network):
        logger.info("initial weights have fused batch norms: computing new ones from train patches")
        rows = np.random.default_rng(config.seed).permutation(train_rows)[:_PATCHES_TO_UNFOLD]
        unfold_batch_norm(classifier, torch.from_numpy(pack.patches[np.sort(rows)]))
    return classifier
