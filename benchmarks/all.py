"""Measure maps, trainings and packing, and print the table of docs/performance.md in Markdown."""

from collections.abc import Iterator
from dataclasses import replace

import prepare
from options import benchmark_data, make_parser

from wsi_idc.bench.fixtures import BenchmarkData
from wsi_idc.bench.map import bench_map
from wsi_idc.bench.timing import BARE, COMMAND, PLAIN, BenchmarkResult
from wsi_idc.bench.train import bench_train
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.training.config import TrainConfig

_MAPPED = ("cnn-bn", "resnet18", "resnet50", "efficientnet-b0", "bundled")
# Batch size, steps, and steps of the plain script for each model; large models get fewer steps.
_TRAINED = {"cnn-bn": (64, 80, 16), "resnet18": (32, 16, 8)}
_HEAD = (
    "| command | model | patches/s | of bare | times plain | largest difference |\n"
    "|---|---|---:|---:|---:|---|"
)


def bench_all(
    data: BenchmarkData, *, num_rounds: int, device_config: DeviceConfig
) -> Iterator[BenchmarkResult]:
    """Run every benchmark; yield each result as soon as it is known.

    Args:
        data: Pack of the patches, and folder for files.
        num_rounds: Number of measurements of each variant.
        device_config: Device and precision.
    """
    for model in _MAPPED:
        yield bench_map(
            _with_folder(data, f"map-{model}"),
            device_config=device_config,
            model=model,
            num_rounds=num_rounds,
        )
    for model, (batch_size, num_steps, plain_steps) in _TRAINED.items():
        yield bench_train(
            TrainConfig(model=model, weights="none", batch_size=batch_size),
            _with_folder(data, f"train-{model}"),
            device_config=device_config,
            num_steps=num_steps,
            plain_steps=plain_steps,
        )
    yield prepare.bench_prepare(
        _with_folder(data, "prepare"), num_patches=prepare.NUM_PATCHES, num_rounds=num_rounds
    )


def _with_folder(data: BenchmarkData, name: str) -> BenchmarkData:
    """Return the same data with a new folder."""
    (data.folder / name).mkdir()
    return replace(data, folder=data.folder / name)


def markdown_row(result: BenchmarkResult) -> str:
    """Return a result as a row of the Markdown table."""
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
    with benchmark_data(arguments) as data:
        print(f"{data.about}\n\n{_HEAD}", flush=True)
        for result in bench_all(
            data,
            num_rounds=arguments.rounds,
            device_config=select_device(arguments.device),
        ):
            print(markdown_row(result), flush=True)
