from pathlib import Path

import pytest

from wsi_idc.config import TrainConfig
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.learn import bench
from wsi_idc.models.device import choose_compute

CONFIG = TrainConfig(model="cnn", batch_size=16)


def measure(pack: Pack) -> bench.TrainBench:
    split = make_split(pack, "ratio:50/25/25")
    return bench.bench_train(CONFIG, pack, split, compute=choose_compute("cpu"), num_steps=16)


def test_both_rates_are_of_the_steps_that_were_done(
    cohort: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    done = {}

    def seconds(source: object, num_steps: int, compute: object) -> float:
        # The real steps, on a clock on which those of the training take twice as long.
        for _ in range(num_steps):
            assert next(source) == 16
        kind = source.gi_code.co_name
        done[kind] = done.get(kind, 0) + num_steps
        return num_steps * {"_endless": 0.5, "_bare_steps": 0.25}[kind]

    monkeypatch.setattr(bench, "_seconds", seconds)
    found = measure(cohort)
    assert done == {"_endless": 16 + 3, "_bare_steps": 16 + 3}
    assert found == bench.TrainBench(train=32.0, step=64.0, num_patches=256)
    assert found.as_dict()["ratio"] == 0.5
    assert list(tmp_path.iterdir()) == []


def test_the_clock_runs(cohort: Pack):
    found = measure(cohort)
    assert 0 < found.train < 1e6
    assert 0 < found.step < 1e6
