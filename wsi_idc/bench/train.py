"""``bench train``: compare training with bare steps (one fixed batch) and with a plain script."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from wsi_idc.bench import timing
from wsi_idc.bench.baseline import baseline_epoch
from wsi_idc.bench.fixtures import BenchmarkData, write_pngs
from wsi_idc.core.errors import RunError
from wsi_idc.data.augmentation import augment, sample_params
from wsi_idc.data.splits import make_split
from wsi_idc.models.classifier import to_images
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.training.config import TrainConfig, resolve
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.state import Training
from wsi_idc.training.train import run_steps

_NUM_ROUNDS = 8
_WARM_UP_STEPS = 3


def bench_train(
    config: TrainConfig,
    data: BenchmarkData,
    *,
    device_config: DeviceConfig,
    num_steps: int = 80,
    plain_steps: int = 16,
) -> timing.BenchmarkResult:
    """Measure the speed of training steps, bare steps and steps of a plain script.

    A bare step uses a batch that is already in the memory of the device. No run is written.

    Args:
        config: Configuration of the training.
        data: Pack with the training patches, and folder for the PNG files of the plain script.
        device_config: Device and precision.
        num_steps: Total number of training steps. The total number of bare steps is the same.
        plain_steps: Total number of steps of the plain script; 0 means that the plain script is not
            measured.
    """
    if config.is_probe:
        raise RunError("a linear probe has no training steps; give --freeze 0")
    config = replace(resolve(config), epochs=10**6)
    pack, run = data.pack, Run(data.folder / "unused")
    split = make_split(pack, config.split, seed=config.seed)
    build = partial(build_training, config, pack, split, run=run, device_config=device_config)
    training = build()
    command, bare = _training_steps(training), _bare_steps(build())
    num_steps = max(1, num_steps // _NUM_ROUNDS)
    sum(islice(command, _WARM_UP_STEPS))
    memory = timing.peak_memory(device_config)
    variants: dict[str, timing.Variant] = {
        timing.BARE: lambda: sum(islice(bare, num_steps)),
        timing.COMMAND: lambda: sum(islice(command, num_steps)),
    }
    if plain_steps:
        rows = np.random.default_rng(config.seed).permutation(training.rows["train"])
        num_patches = max(1, plain_steps // _NUM_ROUNDS) * training.patches_per_step
        variants[timing.PLAIN] = partial(
            baseline_epoch,
            build().classifier.to(memory_format=torch.contiguous_format),
            write_pngs(pack, rows[:num_patches], data.folder / "png"),
            batch_size=training.patches_per_step,
        )
    name = f"{config.model} at {config.input_size or pack.info.patch_px} px"
    measure = partial(timing.interleave, num_rounds=_NUM_ROUNDS, device_config=device_config)
    rates = measure(variants, label=f"train, {name}")
    stages = measure(_stages(training), label="parts")
    return timing.BenchmarkResult(
        what="train",
        settings={
            "network": name,
            "machine": timing.machine(device_config),
            "data": data.about,
            "batch size": config.batch_size,
            "patches a round": num_steps * training.patches_per_step,
            "rounds": _NUM_ROUNDS,
        },
        rates=timing.medians(rates),
        ratios=timing.command_ratios(rates),
        parts=timing.medians({name: 1000 / rate for name, rate in stages.items()}),
        peak_memory_mb=memory,
    )


def _stages(training: Training) -> dict[str, timing.Variant]:
    """Return the functions of the stages by name. A function reads, augments or resizes a batch."""
    rows = training.rows["train"][: training.config.batch_size]
    generator = torch.Generator().manual_seed(0)
    params = sample_params(training.config.augment, len(rows), generator=generator)
    patches = torch.from_numpy(training.pack.patches[rows]).to(training.device_config.device)
    images = to_images(patches)
    return {
        "read": lambda: len(training.pack.patches[rows]),
        "augment": lambda: len(augment(to_images(patches), params)),
        "resize": torch.no_grad()(lambda: len(training.classifier.preprocess(images))),
    }


def _training_steps(training: Training) -> Iterator[int]:
    while True:
        yield from run_steps(training)
        training.state.epoch, training.state.step = training.state.epoch + 1, 0


def _bare_steps(training: Training) -> Iterator[int]:
    """Train repeatedly on the first batch; normalize and resize this batch only once."""
    classifier, optimizer = training.classifier, training.optimizer
    rows = training.rows["train"][: training.config.batch_size]
    device = training.device_config.device
    label = torch.from_numpy(training.pack.index["label"].to_numpy()[rows]).long().to(device)
    with torch.no_grad():
        patches = torch.from_numpy(training.pack.patches[rows]).to(device)
        ready = classifier.preprocess(to_images(patches))
    classifier.train()
    while True:
        optimizer.zero_grad(set_to_none=True)
        with training.device_config.autocast():
            loss = torch.nn.functional.cross_entropy(classifier.network(ready), label)
        training.scaler.scale(loss).backward()
        training.scaler.step(optimizer)
        training.scaler.update()
        yield len(rows)
