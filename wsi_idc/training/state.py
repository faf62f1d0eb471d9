"""State of a training: what a stopped one is resumed from."""

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


@dataclass
class TrainState:
    """Where a training is.

    Attributes:
        epoch: Epochs done.
        step: Steps done in the present epoch.
        loss_sum: Sum of the loss over those steps.
        seconds: Spent in the present epoch.
        best: Largest value of what is monitored so far.
        best_epoch: Where it was, counted from 1.
        history: One record an epoch done.
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
    """A training and all that it needs.

    Attributes:
        model: The classifier as a step calls it: compiled, or wrapped for several processes.
        average: Running average of the classifier, None where none is asked for.
        odds_shift: What the handling of the imbalance adds to the log odds of IDC.
        rows: Role to rows of the pack with a known label.
        micro_batch: Patches that a process computes at once.
        was_halved: Whether it was lowered because memory ran out.
        inherited: Patients that the weights it begins with were trained on.
        record: Provenance.
        fresh_loss: Sum of the loss, of this process, that is not yet in ``place``.
        source: Of the train patches.
    """

    config: TrainConfig
    pack: Pack
    split: Split
    run: Run
    compute: DeviceConfig
    world: World
    classifier: PatchClassifier
    model: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: Loss
    odds_shift: float
    rows: dict[str, NDArray[np.int64]]
    micro_batch: int
    micro_batch_reduced: bool
    inherited: tuple[str, ...]
    record: dict[str, Any]
    pending_loss: Tensor
    source: PatchSource
    place: TrainState = field(default_factory=TrainState)

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches of the train rows; a last one of few patches would upset batch norm."""
        return max(1, len(self.rows["train"]) // self.config.batch_size)

    @property
    def patches_a_step(self) -> int:
        """The batch size, or all train patches where they are fewer."""
        return min(self.config.batch_size, len(self.rows["train"]))

    @property
    def judged(self) -> PatchClassifier:
        """What is evaluated and kept: the running average, or else the classifier itself."""
        return (
            self.classifier if self.average is None else cast(PatchClassifier, self.average.module)
        )
