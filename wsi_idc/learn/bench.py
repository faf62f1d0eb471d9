"""How much of the time of a training goes into the network."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsi_idc.config import TrainConfig
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.learn.runs import Run
from wsi_idc.learn.state import Training, resolve, set_up
from wsi_idc.learn.train import steps
from wsi_idc.models.classifier import to_images
from wsi_idc.models.device import Compute
from wsi_idc.progress import progress

logger = logging.getLogger(__name__)

_WARM_UP_STEPS = 3
_NUM_ROUNDS = 8


@dataclass(frozen=True)
class TrainBench:
    """Rates in patches a second, and their ratio.

    Attributes:
        train: Of the training as it is: reading, augmentation, network, optimiser, average.
        step: Of the bare step on input that lies ready on the device: forward, loss, backward,
            optimiser.
        num_patches: Patches that each rate was measured on.
    """

    train: float
    step: float
    num_patches: int

    @property
    def ratio(self) -> float:
        """The share of the time that the network has."""
        return self.train / self.step

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "train_patches_per_second": self.train,
            "step_patches_per_second": self.step,
            "ratio": self.ratio,
            "num_patches": self.num_patches,
        }


def bench_train(
    config: TrainConfig, pack: Pack, split: Split, *, compute: Compute, num_steps: int
) -> TrainBench:
    """Measure both rates by turns, so that a noisy machine slows both alike; nothing is written.

    Args:
        config: What to train.
        pack: The data.
        split: Role of each patient.
        compute: Device and precision.
        num_steps: Steps to measure, of each kind.
    """
    config = replace(resolve(config), epochs=10**6)
    run = Run(Path("unused"))
    whole, bare = (set_up(config, pack, split, run=run, compute=compute) for _ in range(2))
    real, ready = _endless(whole), _bare_steps(bare)
    a_round = max(1, num_steps // _NUM_ROUNDS)
    for source in (real, ready):
        _seconds(source, _WARM_UP_STEPS, compute)
    spent = [0.0, 0.0]
    with progress(2 * a_round * _NUM_ROUNDS, what="measuring", unit="step") as bar:
        for _ in range(_NUM_ROUNDS):
            for kind, source in enumerate((real, ready)):
                spent[kind] += _seconds(source, a_round, compute)
                bar.update(a_round)
    num_patches = a_round * _NUM_ROUNDS * whole.patches_a_step
    return TrainBench(num_patches / spent[0], num_patches / spent[1], num_patches)


def _endless(training: Training) -> Iterator[int]:
    while True:
        yield from steps(training)
        training.place.epoch, training.place.step = training.place.epoch + 1, 0


def _bare_steps(training: Training) -> Iterator[int]:
    """Do steps on the first batch, normalised and resized beforehand."""
    classifier, optimizer = training.classifier, training.optimizer
    rows = training.rows["train"][: training.config.batch_size]
    device = training.compute.device
    label = torch.from_numpy(training.pack.index["label"].to_numpy()[rows]).long().to(device)
    with torch.no_grad():
        patches = torch.from_numpy(training.pack.patches[rows]).to(device)
        ready: Tensor = classifier.preprocess(to_images(patches))
    classifier.train()
    loss_of: Callable[..., Tensor] = torch.nn.functional.cross_entropy
    while True:
        optimizer.zero_grad(set_to_none=True)
        with training.compute.autocast():
            loss = loss_of(classifier.network(ready), label)
        training.scaler.scale(loss).backward()
        training.scaler.step(optimizer)
        training.scaler.update()
        yield len(rows)


def _seconds(source: Iterator[int], num_steps: int, compute: Compute) -> float:
    _wait_for(compute)
    started = time.perf_counter()
    for _ in range(num_steps):
        next(source)
    _wait_for(compute)
    return time.perf_counter() - started


def _wait_for(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
