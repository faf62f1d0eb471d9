"""``bench train``: the rate of a training over the rate of the bare step, and the plain way's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsi_idc.bench.baseline import plain_epoch
from wsi_idc.bench.fixtures import write_pngs
from wsi_idc.bench.timing import (
    BARE,
    COMMAND,
    PLAIN,
    BenchmarkResult,
    Variant,
    interleave,
    machine,
    peak_memory,
)
from wsi_idc.data.augmentation import augment, sample_params
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.classifier import to_images
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.resources import available_cores
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.resolve_config import resolve
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.state import Training
from wsi_idc.training.train import run_steps

_NUM_ROUNDS = 8
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class TrainBenchOptions:
    """What to measure.

    Attributes:
        num_steps: Steps of the command, and as many bare ones.
        plain_steps: Of the plain way; 0 leaves it out.
    """

    num_steps: int = 80
    plain_steps: int = 16


def bench_train(
    config: TrainConfig,
    pack: Pack,
    split: Split,
    *,
    options: TrainBenchOptions,
    about: str,
    compute: DeviceConfig,
    folder: Path,
) -> BenchmarkResult:
    """Measure training steps, bare steps and the plain way's by turns; no run is written.

    Args:
        config: What to train.
        pack: The data.
        split: Role of each patient.
        options: How long to measure.
        about: What the data are, for the report.
        compute: Device and precision.
        folder: For PNG files.
    """
    config = replace(resolve(config), epochs=10**6)
    run = Run(folder / "unused")
    whole, bare = (
        build_training(config, pack, split, run=run, device_config=compute) for _ in range(2)
    )
    real, ready = _endless(whole), _bare_steps(bare)
    a_round = max(1, options.num_steps // _NUM_ROUNDS)
    _do(real, _WARM_UP_STEPS)
    memory = peak_memory(compute)
    ways: dict[str, Variant] = {
        BARE: partial(_do, ready, a_round),
        COMMAND: partial(_do, real, a_round),
    }
    if options.plain_steps:
        ways[PLAIN] = _plain(config, whole, max(1, options.plain_steps // _NUM_ROUNDS), folder)
    size = config.input_size or pack.info.patch_px
    name = f"{config.model} at {size} px"
    rates = interleave(ways, num_rounds=_NUM_ROUNDS, compute=compute, what=f"train, {name}")
    return BenchmarkResult(
        what="train",
        settings={
            "network": name,
            "machine": machine(compute),
            "data": about,
            "batch size": config.batch_size,
            "patches a round": a_round * whole.patches_per_step,
            "rounds": _NUM_ROUNDS,
        },
        rates=rates.medians(),
        ratios=rates.ratios_to(COMMAND),
        parts=_parts(whole, compute),
        peak_memory_mb=memory,
    )


def _do(source: Iterator[int], num_steps: int) -> int:
    return sum(next(source) for _ in range(num_steps))


def _plain(config: TrainConfig, training: Training, num_steps: int, folder: Path) -> Variant:
    """Return the plain way over as many patches as so many steps have."""
    rows = np.random.default_rng(config.seed).permutation(training.rows["train"])
    files = write_pngs(training.pack, rows[: num_steps * training.patches_per_step], folder / "png")
    return partial(
        plain_epoch,
        build_training(
            config,
            training.pack,
            training.split,
            run=training.run,
            device_config=training.device_config,
        ).classifier.to(memory_format=torch.contiguous_format),
        files,
        device=training.device_config.device,
        batch_size=training.patches_per_step,
        num_workers=available_cores(),
    )


def _parts(training: Training, compute: DeviceConfig) -> dict[str, float]:
    """Return what reading, augmenting and resizing take by themselves, ms a patch."""
    config, classifier = training.config, training.classifier
    rows = training.rows["train"][: config.batch_size]
    generator = torch.Generator().manual_seed(0)
    draws = sample_params(config.augment, len(rows), generator=generator)
    patches = torch.from_numpy(training.pack.patches[rows]).to(compute.device)
    images = to_images(patches)

    def read() -> int:
        return len(training.pack.patches[rows])

    def show() -> int:
        return len(augment(to_images(patches), draws))

    @torch.no_grad()
    def resize() -> int:
        return len(classifier.preprocess(images))

    ways: dict[str, Variant] = {"read": read, "augment": show, "resize": resize}
    return interleave(ways, num_rounds=_NUM_ROUNDS, compute=compute, what="parts").milliseconds()


def _endless(training: Training) -> Iterator[int]:
    while True:
        yield from run_steps(training)
        training.state.epoch, training.state.step = training.state.epoch + 1, 0


def _bare_steps(training: Training) -> Iterator[int]:
    """Do steps on the first batch, normalised and resized beforehand."""
    classifier, optimizer = training.classifier, training.optimizer
    rows = training.rows["train"][: training.config.batch_size]
    device = training.device_config.device
    label = torch.from_numpy(training.pack.index["label"].to_numpy()[rows]).long().to(device)
    with torch.no_grad():
        patches = torch.from_numpy(training.pack.patches[rows]).to(device)
        ready: Tensor = classifier.preprocess(to_images(patches))
    classifier.train()
    loss_of: Callable[..., Tensor] = torch.nn.functional.cross_entropy
    while True:
        optimizer.zero_grad(set_to_none=True)
        with training.device_config.autocast():
            loss = loss_of(classifier.network(ready), label)
        training.scaler.scale(loss).backward()
        training.scaler.step(optimizer)
        training.scaler.update()
        yield len(rows)
