"""Objects and state of a training. A stopped training resumes from the state in last.pt."""

import logging
import math
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsi_idc.core.errors import RunError
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.checkpoint import Checkpoint, InputSpec, load_state, read_state, write_state
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import World
from wsi_idc.training.batches import PatchSource
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Loss
from wsi_idc.training.runs import Run

logger = logging.getLogger(__name__)
STATE_FORMAT = "wsi-idc-training-state"


@dataclass
class TrainState:
    """Progress of a training.

    Attributes:
        epoch: Number of finished epochs.
        step: Number of finished steps in the current epoch.
        loss_sum: Sum of the loss over the finished steps of the current epoch.
        seconds: Time spent on the current epoch, in s.
        best: Best value of the monitored metric so far.
        best_epoch: Number of the epoch with the best value, counted from 1; initially 0.
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
        model: Module that a step calls: the classifier, possibly compiled or wrapped by DDP.
        average: Running average of the weights; None if the setting ``ema`` is 0.
        log_odds_shift: Amount that class weights or oversampling add to the log odds of IDC.
        rows: For each role ("train", "val"), the indices of its labeled patches in the pack.
        micro_batch: Number of patches that a process computes at once.
        micro_batch_reduced: Whether ``micro_batch`` was reduced because memory ran out.
        pretraining_patients: Patients on which the initial weights were trained.
        pending_loss: Loss of this process that has not yet been added to ``state.loss_sum``.
        source: Source that reads the train patches.
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
        """Number of full batches in an epoch, at least 1.

        A smaller last batch is left out, because it would disturb batch norm.
        """
        return max(1, len(self.rows["train"]) // self.config.batch_size)

    @property
    def patches_per_step(self) -> int:
        """Number of patches in a batch: the batch size, or all train patches if they are fewer."""
        return min(self.config.batch_size, len(self.rows["train"]))

    @property
    def can_stop_early(self) -> bool:
        """True if the training may stop before its last epoch, because no epoch is better."""
        return self.state.best_epoch + self.config.patience < self.config.epochs

    @property
    def is_complete(self) -> bool:
        """True if the last epoch is finished, or if the training stops early."""
        state, config = self.state, self.config
        return state.epoch >= config.epochs or state.epoch - state.best_epoch >= config.patience

    @property
    def ema_model(self) -> PatchClassifier:
        """Model to evaluate and save: the running average if there is one, else the classifier."""
        model = self.classifier if self.average is None else self.average.module
        return cast(PatchClassifier, model)


def to_checkpoint(training: Training) -> Checkpoint:
    """Return a checkpoint of the current weights, without calibration and metrics."""
    classifier, info = training.ema_model, training.pack.info
    mean, std = (tuple(x.flatten().tolist()) for x in (classifier.mean, classifier.std))
    return Checkpoint(
        architecture=training.config.model,
        state=classifier.network.state_dict(),
        input=InputSpec(
            *(info.patch_px, info.mpp, classifier.input_px, mean, std),
            interpolation=classifier.interpolation,
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
    """Write the state of a training to last.pt, atomically; only the main process writes."""
    if not training.world.is_main:
        return
    average = training.average
    content = {
        "format": STATE_FORMAT,
        "network": training.classifier.network.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        # If the size was not reduced, a resumed training may choose another size.
        "micro_batch": training.micro_batch if training.micro_batch_reduced else None,
        "compute": str(training.device_config),
        "place": asdict(training.state),
    }
    write_state(training.run.last, content)


def resume(training: Training) -> None:
    """Read the state of a training from last.pt into ``training``."""
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
        logger.warning(
            "the training started on %s and resumes on %s: results may differ slightly", before, now
        )
