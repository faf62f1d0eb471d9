from pathlib import Path

import numpy as np
import pytest

from wsi_idc.bench import timing
from wsi_idc.bench import train as train_module
from wsi_idc.bench.fixtures import BenchmarkData
from wsi_idc.bench.timing import BenchmarkResult, Rates
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.device import select_device
from wsi_idc.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("no_workers")


def measure(pack: Pack, folder: Path, **steps: int) -> BenchmarkResult:
    config = TrainConfig(model="cnn", batch_size=16, split="ratio:50/25/25")
    data = BenchmarkData(pack, "a cohort", folder)
    return train_module.bench_train(config, data, device_config=select_device("cpu"), **steps)


def test_rates_are_those_of_the_steps(
    cohort: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def interleave(variants: dict, **_: object) -> Rates:
        # The real steps on a fake clock, on which those of the training take twice as long.
        patches = {name: variant() for name, variant in variants.items()}
        seconds = {"command": 0.5, "bare": 0.25}
        return {n: np.array([patches[n] / (2 * seconds.get(n, 1.0))]) for n in variants}

    monkeypatch.setattr(timing, "interleave", interleave)
    result = measure(cohort, tmp_path, num_steps=16, plain_steps=0)
    assert result.rates == {"bare": 64.0, "command": 32.0}
    assert result.ratios == {"command / bare": 0.5}
    assert result.settings["patches a round"] == 32
    assert list(tmp_path.iterdir()) == []


def test_the_plain_script_trains_too(cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_module, "_NUM_ROUNDS", 1)
    result = measure(cohort, tmp_path, num_steps=2, plain_steps=2)
    assert set(result.rates) == {"bare", "command", "plain"}
    assert all(0 < rate < 1e6 for rate in result.rates.values())
    assert set(result.parts) == {"read", "augment", "resize"}
