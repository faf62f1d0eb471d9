"""``wsi-idc bench``: measure the speed of mapping and of training."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.options import (
    compute_options,
    config_options,
    data_option,
    device_option,
    output_options,
    with_default,
)
from wsi_idc.cli.output import echo_result, table_lines
from wsi_idc.training.config import TrainConfig


@click.group()
def bench() -> None:
    """Measure how fast this machine maps and trains.

    The command measures three variants: the bare network on data in memory, wsi-idc map or train,
    and a plain script. The plain script reads PNG files with Pillow in a DataLoader. For maps, it
    computes one CAM at a time with torchcam. The result is the speed of each variant in patches per
    second, and the ratios of the speeds. All files are temporary.

    \b
    Example:
      wsi-idc bench map --model resnet18
    """


_synthetic_option = click.option(
    "--synthetic",
    type=click.IntRange(min=0),
    default=0,
    help="Number of synthetic patches to draw instead of reading data.  "
    "[default: 0, or 4000 if there are no data]",
)
_compile_option = click.option(
    "--compile", "compiled", is_flag=True, help="Compile the network with torch.compile."
)


@bench.command("map")
@with_default("--model", default="cnn-bn", help="Name of a model of wsi-idc train, or 'bundled'.")
@click.option(
    "--input-size",
    type=click.IntRange(0, 1024),
    default=0,
    help="Side of resized patches in px; 0 means the default of the model.",
)
@data_option
@_synthetic_option
@click.option(
    "--patches",
    "num_patches",
    type=click.IntRange(min=0),
    default=0,
    help="Number of patches per round.  [default: enough for about 15 seconds]",
)
@with_default(
    "--rounds",
    "num_rounds",
    type=click.IntRange(min=1),
    default=5,
    help="Number of measurements of each variant.",
)
@click.option(
    "--plain-patches",
    type=click.IntRange(min=-1),
    default=0,
    help="Number of patches per round of the plain script; -1 leaves it out.  "
    "[default: a quarter of --patches]",
)
@_compile_option
@compute_options
@output_options
def bench_map(
    data: Path | None,
    synthetic: int,
    device: str,
    precision: str,
    compiled: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the speed of wsi-idc map.

    The time includes CAMs and the writing of files. The table also shows the largest differences
    between the maps and the results of the plain script (see wsi-idc bench --help).

    \b
    Examples:
      wsi-idc bench map
      wsi-idc bench map --model resnet18 --batch-size 32
      wsi-idc bench map --model resnet18 --synthetic 277524 \\
        --patches 277524 --plain-patches 2000 --rounds 1 \\
        --batch-size 512 --compile --device cuda
    """
    from wsi_idc.bench.fixtures import open_benchmark_data
    from wsi_idc.bench.map import bench_map as measure
    from wsi_idc.runtime.device import select_device

    device_config = select_device(device, precision, compiled=compiled)
    with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
        benchmark_data = open_benchmark_data(data, synthetic=synthetic, folder=Path(name))
        result = measure(benchmark_data, device_config=device_config, **options)
    echo_result(asdict(result), table_lines(result.rows()), as_json=as_json)


@bench.command("train")
@config_options
@data_option
@_synthetic_option
@device_option
@with_default(
    "--steps",
    "num_steps",
    type=click.IntRange(min=8),
    default=80,
    help="Number of training steps to measure, and also of bare steps.",
)
@with_default(
    "--plain-steps",
    type=click.IntRange(min=0),
    default=16,
    help="Number of steps of the plain script; 0 leaves it out.",
)
@_compile_option
@output_options
def bench_train(
    data: Path | None,
    synthetic: int,
    device: str,
    num_steps: int,
    plain_steps: int,
    compiled: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the speed of wsi-idc train.

    The command compares training steps with bare steps and with steps of a plain script. A bare
    step is a forward pass, the loss, a backward pass and an optimizer step. All bare steps use the
    same batch in the memory of the device. The command writes no run.

    \b
    Examples:
      wsi-idc bench train
      wsi-idc bench train --model resnet18 --weights none --steps 16
    """
    config = TrainConfig(**options)

    from wsi_idc.bench.fixtures import open_benchmark_data
    from wsi_idc.bench.train import bench_train as measure
    from wsi_idc.runtime.device import select_device

    device_config = select_device(device, config.precision, compiled=compiled, training=True)
    steps = {"num_steps": num_steps, "plain_steps": plain_steps}
    with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
        benchmark_data = open_benchmark_data(data, synthetic=synthetic, folder=Path(name))
        result = measure(config, benchmark_data, device_config=device_config, **steps)
    echo_result(asdict(result), table_lines(result.rows()), as_json=as_json)
