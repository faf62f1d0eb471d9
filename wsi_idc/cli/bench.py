"""``wsi-idc bench``."""

from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.options import (
    config_options,
    data_option,
    device_option,
    json_option,
    logging_options,
    say_json,
    say_rows,
)
from wsi_idc.config import TrainConfig


@click.group()
def bench() -> None:
    """Measure how fast this machine is, as ratios in one run.

    \b
    Example:
      wsi-idc bench train
    """


@bench.command("train")
@config_options
@data_option
@device_option
@click.option(
    "--steps",
    type=click.IntRange(min=8),
    default=80,
    show_default=True,
    help="Steps to measure, of each kind.",
)
@json_option
@logging_options
def bench_train(data: Path | None, device: str, steps: int, as_json: bool, **options: Any) -> None:
    """Measure the training rate over the rate of bare steps on ready batches.

    Bare: forward, loss, backward, optimiser, on input that lies on the device. The two are
    measured by turns. Nothing is written.

    \b
    Examples:
      wsi-idc bench train
      wsi-idc bench train --model resnet18 --weights none --steps 16
    """
    from wsi_idc.data.source import open_data
    from wsi_idc.data.splits import make_split
    from wsi_idc.learn.bench import bench_train as measure
    from wsi_idc.models.device import choose_compute

    config = TrainConfig(**options)
    compute = choose_compute(device, config.precision)
    pack = open_data(data)
    split = make_split(pack, config.split, seed=config.seed)
    found = measure(config, pack, split, compute=compute, num_steps=steps)
    if as_json:
        say_json({"model": config.model, "device": str(compute), **found.as_dict()})
        return
    say_rows(
        [
            ("model", config.model),
            ("device", compute),
            ("training", f"{found.train:.0f} patches/s"),
            ("bare step", f"{found.step:.0f} patches/s"),
            ("ratio", f"{found.ratio:.3f} over {found.num_patches} patches each"),
        ]
    )
