"""``wsi-idc bench``."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import (
    compute_options,
    config_options,
    data_option,
    device_option,
    json_option,
    logging_options,
)
from wsi_idc.cli.output import echo, echo_json, echo_table
from wsi_idc.training.config import TrainConfig

if TYPE_CHECKING:
    from wsi_idc.bench.timing import BenchmarkResult
    from wsi_idc.data.pack import Pack


@click.group()
def bench() -> None:
    """Measure how fast this machine is, as ratios in one run.

    The network alone, the command, and the plain way (Pillow, torchvision, a DataLoader of PNG
    files, torchcam image by image) do the same patches by turns. Everything is written, into a
    temporary folder.

    \b
    Example:
      wsi-idc bench map --model resnet18
    """


def _material_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--data`` and ``--synthetic``."""
    synthetic = click.option(
        "--synthetic",
        type=click.IntRange(min=0),
        default=0,
        help="Draw so many patches instead of reading data.  [default: where there are no data]",
    )
    return data_option(synthetic(command))


def _rounds_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--patches`` and ``--rounds``."""
    patches = click.option(
        "--patches", type=click.IntRange(min=0), default=0, help="Of a round.  [default: enough]"
    )
    rounds = click.option(
        "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each way."
    )
    return patches(rounds(command))


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--model`` and ``--input-size``."""
    model = click.option(
        "--model",
        default="cnn-bn",
        show_default=True,
        help="As wsi-idc train takes it; of maps also bundled.",
    )
    size = click.option("--input-size", type=click.IntRange(0, 1024), default=0, help="0: its own.")
    return model(size(command))


_compile_option = click.option(
    "--compile", "compiled", is_flag=True, help="Run the network through torch.compile."
)


@bench.command("map")
@_model_options
@_material_options
@_rounds_options
@click.option(
    "--plain-patches",
    type=click.IntRange(min=-1),
    default=0,
    help="Of a round of the plain way; -1 leaves it out.  [default: a quarter]",
)
@_compile_option
@compute_options
@json_option
@logging_options
def bench_map(
    data: Path | None,
    synthetic: int,
    device: str,
    precision: str,
    compiled: bool,
    patches: int,
    rounds: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure making maps, with CAM and everything written.

    The plain way is also the reference: how far the maps are from what it says is in the table.

    \b
    Examples:
      wsi-idc bench map
      wsi-idc bench map --model resnet18 --batch-size 32
      wsi-idc bench map --model resnet18 --synthetic 277524 --patches 277524 --rounds 1 \\
        --plain-patches 2000 --batch-size 512 --compile --device cuda
    """
    from wsi_idc.bench.map import MapBenchOptions
    from wsi_idc.bench.map import bench_map as measure
    from wsi_idc.runtime.device import select_device

    compute = select_device(device, precision, compiled=compiled)
    wanted = MapBenchOptions(num_patches=patches, num_rounds=rounds, **options)
    with _material(data, synthetic) as (pack, about, folder):
        found = measure(wanted, pack, about=about, compute=compute, folder=folder)
    _say(found, as_json=as_json)


@bench.command("train")
@config_options
@_material_options
@device_option
@click.option(
    "--steps",
    type=click.IntRange(min=8),
    default=80,
    show_default=True,
    help="Steps to measure, of each kind.",
)
@click.option(
    "--plain-steps",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Of the plain way; 0 leaves it out.",
)
@_compile_option
@json_option
@logging_options
def bench_train(
    data: Path | None,
    synthetic: int,
    device: str,
    steps: int,
    plain_steps: int,
    compiled: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure training over bare steps on ready batches.

    Bare: forward, loss, backward, optimiser, on input that lies on the device. No run is written.

    \b
    Examples:
      wsi-idc bench train
      wsi-idc bench train --model resnet18 --weights none --steps 16
    """
    from wsi_idc.bench.train import TrainBenchOptions
    from wsi_idc.bench.train import bench_train as measure
    from wsi_idc.data.splits import make_split
    from wsi_idc.runtime.device import select_device

    config = TrainConfig(**options)
    compute = select_device(device, config.precision, compiled=compiled)
    with _material(data, synthetic) as (pack, about, folder):
        found = measure(
            config,
            pack,
            make_split(pack, config.split, seed=config.seed),
            options=TrainBenchOptions(steps, plain_steps),
            about=about,
            compute=compute,
            folder=folder,
        )
    _say(found, as_json=as_json)


@bench.command("prepare")
@_material_options
@_rounds_options
@json_option
@logging_options
def bench_prepare(
    data: Path | None, synthetic: int, patches: int, rounds: int, as_json: bool
) -> None:
    """Measure packing PNG files, by number of workers.

    \b
    Example:
      wsi-idc bench prepare
    """
    from wsi_idc.bench.prepare import bench_prepare as measure

    with _material(data, synthetic) as (pack, about, folder):
        found = measure(pack, about=about, num_patches=patches, num_rounds=rounds, folder=folder)
    _say(found, as_json=as_json)


@bench.command("loader")
@_material_options
@_rounds_options
@compute_options
@json_option
@logging_options
def bench_loader(
    data: Path | None,
    synthetic: int,
    device: str,
    precision: str,
    batch_size: int,
    patches: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure how fast batches come to the device.

    \b
    Example:
      wsi-idc bench loader
    """
    from wsi_idc.bench.loader import bench_loader as measure
    from wsi_idc.runtime.device import select_device

    with _material(data, synthetic) as (pack, about, folder):
        found = measure(
            pack,
            about=about,
            batch_size=batch_size,
            num_patches=patches,
            num_rounds=rounds,
            compute=select_device(device, precision),
            folder=folder,
        )
    _say(found, as_json=as_json)


@bench.command("all")
@_material_options
@device_option
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@json_option
@logging_options
def bench_all(data: Path | None, synthetic: int, device: str, rounds: int, as_json: bool) -> None:
    """Measure everything and say it as the table of docs/performance.md, in Markdown.

    \b
    Example:
      wsi-idc bench all > table.md
    """
    from wsi_idc.bench.all import bench_all as measure
    from wsi_idc.bench.timing import MARKDOWN_HEAD, markdown_row
    from wsi_idc.runtime.device import select_device

    compute = select_device(device)
    with _material(data, synthetic) as (pack, about, folder):
        if not as_json:
            click.echo(f"{about}\n\n{MARKDOWN_HEAD}")
        all_found = []
        for found in measure(pack, about=about, num_rounds=rounds, compute=compute, folder=folder):
            all_found.append(found.as_dict())
            if not as_json:
                echo(markdown_row(found))
    if as_json:
        echo_json(all_found)


@contextmanager
def _material(data: Path | None, synthetic: int) -> Iterator[tuple["Pack", str, Path]]:
    """Yield patches, what they are, and a folder that is gone afterwards."""
    from wsi_idc.bench.fixtures import open_material

    with tempfile.TemporaryDirectory(prefix="wsi-idc-bench-") as name:
        folder = Path(name)
        yield *open_material(data, synthetic=synthetic, folder=folder), folder


def _say(found: "BenchmarkResult", *, as_json: bool) -> None:
    if as_json:
        echo_json(found.as_dict())
    else:
        echo_table(found.rows())
