import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import CONFIG, Fit
from wsi_idc.training import time_left
from wsi_idc.training.runs import Run
from wsi_idc.training.time_left import TimeLeft


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list with the time; tests change it."""
    now = [100.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    return now


def test_time_left_follows_from_the_work_done(build: Any, clock: list[float]):
    training = build(replace(CONFIG, epochs=10, patience=10))
    left = TimeLeft(training)
    assert (left.percent(), str(left)) == ("run 0%", "")
    clock[0] += 60
    training.state.epoch = 1
    assert (left.percent(), str(left)) == ("run 10%", "09:00 left")
    # A validation has a third of the work of a step for each patch.
    num_train, num_val = 32, len(training.rows["val"])
    assert training.steps_per_epoch * training.patches_per_step == num_train
    training.state.step = 4
    done = 1 + num_train / (num_train + round(num_val / 3))
    assert left.percent() == f"run {int(10 * done)}%"
    seconds = int(60 * (10 - done) / done)
    assert str(left) == f"{seconds // 60:02}:{seconds % 60:02} left"


def test_time_left_counts_only_this_process_and_is_a_limit_with_early_stopping(
    build: Any, clock: list[float]
):
    training = build(replace(CONFIG, epochs=100, patience=8))
    training.state.epoch = training.state.best_epoch = 50  # resumed
    left = TimeLeft(training)
    clock[0] += 3600
    training.state.epoch = 51
    assert (left.percent(), str(left)) == ("run 51%", "at most 49:00:00 left")
    # From now on, the patience is longer than the remaining epochs.
    training.state.best_epoch = training.state.epoch = 92
    assert str(left) == "11:25 left"


def test_the_last_epoch_names_an_early_stop(fit: Fit, tmp_path: Path, caplog: Any):
    config = replace(CONFIG, epochs=30, patience=1, learning_rate=1e-6)
    with caplog.at_level(logging.INFO, logger="wsi_idc"):
        fit(config, Run(tmp_path / "run"))
    lines = [" ".join(text.split()) for text in caplog.messages if text.startswith("epoch ")]
    assert len(lines) < 30
    assert all(", at most " in line and line.endswith(" left") for line in lines[:-1])
    assert lines[-1].endswith("stops early: no better epoch in the last 1")
