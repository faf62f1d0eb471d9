"""``bench all``: the rows of the table in docs/performance.md."""

from collections.abc import Iterator
from pathlib import Path

from wsi_idc.bench.map import MapBenchOptions, bench_map
from wsi_idc.bench.prepare import bench_prepare
from wsi_idc.bench.timing import BenchmarkResult
from wsi_idc.bench.train import TrainBenchOptions, bench_train
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.training.config import TrainConfig

_MAPPED = ("cnn-bn", "resnet18", "resnet50", "efficientnet-b0", "bundled")
# Steps to measure: those of a large network take seconds on a CPU.
_TRAINED = {"cnn-bn": (80, 16), "resnet18": (16, 8)}
_TRAIN_BATCH = {"cnn-bn": 64, "resnet18": 32}


def bench_all(
    pack: Pack, *, about: str, num_rounds: int, compute: DeviceConfig, folder: Path
) -> Iterator[BenchmarkResult]:
    """Yield what each bench finds, as soon as it is found.

    Args:
        pack: The data.
        about: What they are, for the report.
        num_rounds: How often each way is measured.
        compute: Device and precision.
        folder: For files.
    """
    for model in _MAPPED:
        options = MapBenchOptions(model=model, num_rounds=num_rounds)
        out = _own(folder, f"map-{model}")
        yield bench_map(options, pack, about=about, compute=compute, folder=out)
    split = make_split(pack, "auto")
    for model, steps in _TRAINED.items():
        config = TrainConfig(model=model, weights="none", batch_size=_TRAIN_BATCH[model])
        yield bench_train(
            config,
            pack,
            split,
            options=TrainBenchOptions(*steps),
            about=about,
            compute=compute,
            folder=_own(folder, f"train-{model}"),
        )
    yield bench_prepare(
        pack,
        about=about,
        num_patches=0,
        num_rounds=num_rounds,
        folder=_own(folder, "prepare"),
    )


def _own(folder: Path, name: str) -> Path:
    own = folder / name
    own.mkdir()
    return own
