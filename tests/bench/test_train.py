from pathlib import Path

import pytest

from wsi_idc.bench import train as training
from wsi_idc.bench.timing import BenchmarkResult, Rates
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.runtime.device import select_device
from wsi_idc.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("no_workers")

CONFIG = TrainConfig(model="cnn", batch_size=16)


def measure(pack: Pack, folder: Path, *, plain_steps: int = 0) -> BenchmarkResult:
    return training.bench_train(
        CONFIG,
        pack,
        make_split(pack, "ratio:50/25/25"),
        options=training.TrainBenchOptions(16, plain_steps),
        about="a cohort",
        compute=select_device("cpu"),
        folder=folder,
    )


def test_both_rates_are_of_the_steps_that_were_done(
    cohort: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def by_turns(ways: dict, **_: object) -> Rates:
        # The real steps, on a clock on which those of the training take twice as long.
        patches = {name: way() for name, way in ways.items()}
        seconds = {"command": 0.5, "bare": 0.25}
        return Rates({n: [patches[n] / (2 * seconds.get(n, 1.0))] for n in ways})

    monkeypatch.setattr(training, "by_turns", by_turns)
    found = measure(cohort, tmp_path)
    assert found.rates == {"bare": 64.0, "command": 32.0}
    assert found.ratios == {"command / bare": 0.5}
    assert found.settings["patches a round"] == 32
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_clock_runs_and_the_plain_way_trains(cohort: Pack, tmp_path: Path):
    found = measure(cohort, tmp_path, plain_steps=8)
    assert set(found.rates) == {"bare", "command", "plain"}
    assert all(0 < rate < 1e6 for rate in found.rates.values())
    assert set(found.parts) == {"read", "augment", "resize"}
