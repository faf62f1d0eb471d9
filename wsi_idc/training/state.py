"""State of a training and the objects that it uses: built, saved, and resumed from disk."""

import logging
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsi_idc.core.errors import RunError
from wsi_idc.core.provenance import provenance
from wsi_idc.data.pack import Pack
from wsi_idc.data.pixels import channel_histogram, channel_statistics
from wsi_idc.data.splits import Split
from wsi_idc.models import pretrained
from wsi_idc.models.batch_norm import has_fused_batch_norm, unfold_batch_norm
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_state, read_state, write_state
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import IMAGENET_MEAN, IMAGENET_STD, architecture, check_input_px
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import SINGLE_PROCESS, World
from wsi_idc.training.batches import PatchSource
from wsi_idc.training.config import TrainConfig, is_weights_file
from wsi_idc.training.optimization import Loss, build_average, build_optimizer, inverse_frequency
from wsi_idc.training.runs import Run

logger = logging.getLogger(__name__)

STATE_FORMAT = "wsi-idc-training-state"
_IMAGENET = pretrained.Normalization(IMAGENET_MEAN, IMAGENET_STD)
_SYMMETRIC = pretrained.Normalization((0.5,) * 3, (0.5,) * 3)
_PATCHES_TO_UNFOLD = 256
_PATCHES_PER_READ = 4096


@dataclass
class TrainState:
    """Progress of a training.

    Attributes:
        epoch: Number of finished epochs.
        step: Number of finished steps in the current epoch.
        loss_sum: Sum of the loss over those steps.
        seconds: Time spent in the current epoch.
        best: Largest value of the monitored metric so far.
        best_epoch: Epoch of that value, counted from 1; 0 before the first.
        history: One record per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Training:
    """A training and all objects that it uses.

    Attributes:
        model: The classifier as a step calls it: compiled, or wrapped for several processes.
        average: Running average of the classifier; None if the configuration has none.
        log_odds_shift: Amount that the correction of the imbalance adds to the IDC log odds.
        rows: Rows of the pack with a known label, by role ("train", "val").
        micro_batch: Number of patches that a process computes at once.
        micro_batch_reduced: Whether that number was reduced because memory ran out.
        pretraining_patients: Patients on which the initial weights were trained.
        pending_loss: Sum of this process's loss that is not yet part of ``state.loss_sum``.
        source: Source of the train patches.
    """

    config: TrainConfig
    pack: Pack
    split: Split
    run: Run
    device_config: DeviceConfig
    world: World
    classifier: PatchClassifier
    model: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    log_odds_shift: float
    rows: dict[str, NDArray[np.int64]]
    micro_batch: int
    micro_batch_reduced: bool
    pretraining_patients: tuple[str, ...]
    provenance: dict[str, Any]
    pending_loss: Tensor
    source: PatchSource
    state: TrainState = field(default_factory=TrainState)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches; a last batch of few patches would disturb batch norm."""
        return max(1, len(self.rows["train"]) // self.config.batch_size)

    @property
    def patches_per_step(self) -> int:
        """Batch size, or the number of train patches if it is smaller."""
        return min(self.config.batch_size, len(self.rows["train"]))

    @property
    def ema_model(self) -> PatchClassifier:
        """The model that is evaluated and saved: the running average, else the classifier."""
        if self.average is None:
            return self.classifier
        return cast(PatchClassifier, self.average.module)


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
    """Build a training before its first step; no file is written.

    ``config`` is a resolved configuration; the other arguments are those of ``train``.
    """
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
            "--freeze %d without initial weights trains the head on random features", config.freeze
        )
    # Both corrections balance the classes equally, so both shift the log odds by the same amount.
    is_balanced = config.imbalance in ("class-weights", "oversample")
    balance = inverse_frequency(labels) if is_balanced else np.ones(2)
    class_weight = balance if config.imbalance == "class-weights" else np.ones(2)
    logger.info("device: %s; class weights: %s", device_config, class_weight.round(3))
    max_micro_batch = -(-config.batch_size // world.size)
    # In float64 the sum does not depend on where a stop divides it; MPS has no float64.
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
        average=build_average(classifier, config.ema) if config.ema else None,
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
        source=PatchSource(pack, rows["train"], device),
    )


def labeled_rows(pack: Pack, patients: Collection[str]) -> NDArray[np.int64]:
    """Return the rows of all patches of some patients whose label is known, shape (n,)."""
    is_chosen = np.isin(pack.patient_of, list(patients))
    return np.flatnonzero(is_chosen & (pack.index["label"].to_numpy() >= 0))


def _pretraining_patients(config: TrainConfig, split: Split) -> tuple[str, ...]:
    """Return the patients of the initial weights; warn if any of them is in val or test."""
    if not is_weights_file(config.weights):
        return ()
    patients = pretrained.pretraining_patients(Path(config.weights))
    held_out = set(split.patients("val")) | set(split.patients("test"))
    if seen := sorted(held_out.intersection(patients)):
        logger.warning(
            "%s was trained on %d patients of val and test (first: %s), so their metrics will be "
            "too good; use the split with which it was trained",
            config.weights,
            len(seen),
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
        # Only of the train patients: the model must not learn anything about the others.
        histogram = np.zeros((3, 256), np.int64)
        for start in range(0, len(train_rows), _PATCHES_PER_READ):
            histogram += channel_histogram(pack.patches[train_rows[start:][:_PATCHES_PER_READ]])
        normalization = pretrained.Normalization(*channel_statistics(histogram))
    elif config.normalize != "auto":
        normalization = _IMAGENET if config.normalize == "imagenet" else _SYMMETRIC
    mean, std = normalization or _IMAGENET
    classifier = PatchClassifier(
        arch, network, input_px=config.input_size or None, mean=mean, std=std
    )
    if config.weights != "none" and has_fused_batch_norm(network):
        logger.info("unfolding the fused batch norms of the initial weights on train patches")
        rows = np.random.default_rng(config.seed).permutation(train_rows)[:_PATCHES_TO_UNFOLD]
        unfold_batch_norm(classifier, torch.from_numpy(pack.patches[np.sort(rows)]))
    return classifier


def to_checkpoint(training: Training) -> Checkpoint:
    """Build a checkpoint of the current weights, uncalibrated and without metrics."""
    classifier, info = training.ema_model, training.pack.info
    return Checkpoint(
        architecture=training.config.model,
        state=classifier.network.state_dict(),
        input=InputSpec(
            patch_px=info.patch_px,
            mpp=info.mpp,
            input_px=classifier.input_px,
            mean=tuple(classifier.mean.flatten().tolist()),
            std=tuple(classifier.std.flatten().tolist()),
        ),
        class_names=info.class_names,
        cam_layer=classifier.arch.cam_layer,
        temperature=1.0,
        threshold=0.5,
        metrics={},
        split=dict(training.split.roles),
        split_spec=training.split.spec,
        provenance=training.provenance,
        config=asdict(training.config),
        inherited=training.pretraining_patients,
    )


def save_state(training: Training) -> None:
    """Write last.pt in one atomic step, in the process that writes files."""
    if not training.world.is_main:
        return
    average = training.average
    content = {
        "format": STATE_FORMAT,
        "network": training.classifier.network.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        # A size that the memory limits must be kept; a size that the user gave may change.
        "micro_batch": training.micro_batch if training.micro_batch_reduced else None,
        "compute": str(training.device_config),
        "place": asdict(training.state),
    }
    write_state(training.run.last, content)


def resume(training: Training) -> None:
    """Load the state in last.pt into a training."""
    path = training.run.last
    content, _ = read_state(path, kind=STATE_FORMAT)
    try:
        load_state(training.classifier.network, content["network"])
        if training.average is not None:
            training.average.load_state_dict(content["average"])
        training.optimizer.load_state_dict(content["optimizer"])
        for parameter, state in training.optimizer.state.items():
            if any(value.ndim and value.shape != parameter.shape for value in state.values()):
                raise ValueError("the optimizer's state has the shapes of another network")
        training.scaler.load_state_dict(content["scaler"])
        training.state = TrainState(**content["place"])
        epochs = [record["epoch"] for record in training.state.history]
        if epochs != list(range(1, training.state.epoch + 1)):
            raise ValueError("the history does not match the number of epochs")
        if content["micro_batch"] is not None:
            training.micro_batch = max(1, min(training.micro_batch, content["micro_batch"]))
            training.micro_batch_reduced = True
        before, now = content["compute"], str(training.device_config)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(
            f"{path}: the state does not fit this run ({type(error).__name__}); delete the file "
            "to train from the start"
        ) from None
    if before != now:
        logger.warning("started on %s, resumed on %s: results may differ slightly", before, now)
