"""State of a training, and all objects that the training uses."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.distributed import World
from wsi_idc.training.batches import PatchSource
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Loss
from wsi_idc.training.runs import Run

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Progress of a training.

    Attributes:
        epoch: Number of finished epochs.
        step: Number of finished steps in the current epoch.
        loss_sum: Sum of the loss over the finished steps of the current epoch.
        seconds: Time spent on the current epoch, in s.
        best: Best value of the monitored metric so far.
        best_epoch: Number of the epoch with the best value, counted from 1; 0 before the first.
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
        rows: Indices in the pack of the labeled patches, by role ("train", "val").
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
        """Number of full batches in an epoch; a last, smaller batch would disturb batch norm."""
        return max(1, len(self.rows["train"]) // self.config.batch_size)

    @property
    def patches_per_step(self) -> int:
        """Number of patches in a batch: the batch size, or all train patches if they are fewer."""
        return min(self.config.batch_size, len(self.rows["train"]))

    @property
    def ema_model(self) -> PatchClassifier:
        """Model to evaluate and save: the running average, or the classifier without an average."""
        if self.average is None:
            return self.classifier
        return cast(PatchClassifier, self.average.module)
