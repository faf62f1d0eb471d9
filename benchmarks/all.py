"""Measure maps, trainings and packing, and print the table of docs/performance.md in Markdown."""

from collections.abc import Iterator
from pathlib import Path

import prepare
from options import benchmark_data, make_parser

from wsi_idc.bench.map import bench_map
from wsi_idc.bench.timing import BARE, COMMAND, PLAIN, BenchmarkResult
from wsi_idc.bench.train import bench_train
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.training.config import TrainConfig

_MAPPED = ("cnn-bn", "resnet18", "resnet50", "efficientnet-b0", "bundled")
# Model to batch size, steps, and steps of the plain script: a large one's take seconds on a CPU.
_TRAINED = {"cnn-bn": (64, 80, 16), "resnet18": (32, 16, 8)}
_HEAD = (
    "| command | model | patches/s | of bare | times plain | largest difference |\n"
    "|---|---|---:|---:|---:|---|"
)


def bench_all(
    pack: Pack, *, about: str, num_rounds: int, device_config: DeviceConfig, folder: Path
) -> Iterator[BenchmarkResult]:
    """Run every benchmark and yield each result at once.

    Args:
        pack: The data.
        about: Description of the data for the report.
        num_rounds: Number of measurements of each variant.
        device_config: Device and precision.
        folder: Folder for files.
    """
    for model in _MAPPED:
        yield bench_map(
            pack,
            about=about,
            device_config=device_config,
            folder=_make_folder(folder, f"map-{model}"),
            model=model,
            num_rounds=num_rounds,
        )
    split = make_split(pack, "auto")
    for model, (batch_size, num_steps, plain_steps) in _TRAINED.items():
        yield bench_train(
            TrainConfig(model=model, weights="none", batch_size=batch_size),
            pack,
            split,
            about=about,
            device_config=device_config,
            folder=_make_folder(folder, f"train-{model}"),
            num_steps=num_steps,
            plain_steps=plain_steps,
        )
    yield prepare.bench_prepare(
        pack,
        about=about,
        num_patches=prepare.NUM_PATCHES,
        num_rounds=num_rounds,
        folder=_make_folder(folder, "prepare"),
    )


def _make_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def markdown_row(result: BenchmarkResult) -> str:
    """Return a result as a row of the table."""
    of_bare = result.ratios.get(f"{COMMAND} / {BARE}")
    of_plain = result.ratios.get(f"{COMMAND} / {PLAIN}")
    cells = (
        result.what,
        result.settings.get("network", ""),
        f"{result.rates[COMMAND]:,.0f}",
        "" if of_bare is None else f"{of_bare:.2f}",
        "" if of_plain is None else f"{of_plain:.1f}",
        ", ".join(f"{name} {value:.0e}" for name, value in result.differences.items()),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    arguments = make_parser(__doc__).parse_args()
    with benchmark_data(arguments) as (pack, about, folder):
        print(f"{about}\n\n{_HEAD}", flush=True)
        for result in bench_all(
            pack,
            about=about,
            num_rounds=arguments.rounds,
            device_config=select_device(arguments.device),
            folder=folder,
        ):
            print(markdown_row(result), flush=True)
