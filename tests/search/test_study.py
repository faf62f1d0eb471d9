import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.stops import StopAfter
from wsi_idc.core.errors import BusyError, JobError, StoppedError
from wsi_idc.core.locks import locked
from wsi_idc.search.config import Range, SearchSpec
from wsi_idc.search.study import Study

GRID = SearchSpec("grid", {}, {"learning_rate": (1e-3, 1e-2), "imbalance": ("none",)})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_points_depend_only_on_the_seed(sampler: str, tmp_path: Path):
    axes = {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "batch_size": Range(16, 64, step=16),
        "model": ("cnn", "cnn-bn"),
    }

    def draw_points(name: str, seed: int) -> list[dict]:
        spec = SearchSpec(name, {}, axes, sampler=sampler, trials=12, seed=seed)
        (tmp_path / name).mkdir()
        points = []
        while True:
            # A new study for each trial, as after a restart.
            study = Study(spec, tmp_path / name)
            with study.claimed() as lease:
                if lease is None:
                    return points
                points.append(lease.point)
                lease.finish(TrialState.COMPLETE, -lease.point["learning_rate"])

    points = draw_points("one", 0)
    assert len(points) == 12
    assert points == draw_points("two", 0) != draw_points("three", 1)
    assert len({point["learning_rate"] for point in points}) == 12
    assert {point["batch_size"] for point in points} <= {16, 32, 48, 64}
    assert all(type(point["batch_size"]) is int for point in points)
    assert all(1e-4 <= point["learning_rate"] <= 1e-2 for point in points)


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_only_one_process_claims_a_trial(sampler: str, tmp_path: Path):
    spec = SearchSpec("s", {}, {"seed": (0, 1)}, sampler=sampler, trials=2)
    study, other = Study(spec, tmp_path), Study(spec, tmp_path)
    with study.claimed() as first, other.claimed() as second, study.claimed() as third:
        assert (first.number, second.number, third) == (0, 1, None)
        second.finish(TrialState.COMPLETE, 0.5)
    # The first trial was released without a result, as by a killed process.
    with other.claimed() as again:
        assert (again.number, again.point) == (0, first.point)
        again.finish(TrialState.COMPLETE, 0.25)
    with study.claimed() as nothing:
        assert nothing is None
    assert [trial.value for trial in study.trials()] == [0.25, 0.5]


def test_the_first_result_of_a_trial_is_kept(tmp_path: Path):
    study = Study(GRID, tmp_path)
    with study.claimed() as lease:
        lease.finish(TrialState.COMPLETE, 0.5)
        lease.finish(TrialState.COMPLETE, 0.7)
        lease.finish(TrialState.FAIL, reason="too late")
    assert study.trials()[0].value == 0.5


def test_an_incomplete_line_of_a_killed_process_does_no_harm(tmp_path: Path):
    study = Study(GRID, tmp_path)
    with study.claimed() as lease, (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code":6,"wor')
        journal.flush()
        lease.finish(TrialState.COMPLETE, 0.5)
    assert [trial.state for trial in Study(GRID, tmp_path).trials()] == ["complete", "waiting"]


def test_a_damaged_journal_is_one_line(tmp_path: Path):
    Study(GRID, tmp_path)
    journal = tmp_path / "study.journal"
    journal.write_text("nothing\n" + journal.read_text())
    with pytest.raises(JobError, match="damaged"):
        Study(GRID, tmp_path)


def test_the_lock_of_a_killed_process_is_removed_after_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "study.journal.lock").touch()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: 60 * clock())
    started = clock()
    assert len(Study(GRID, tmp_path).trials()) == 2
    assert clock() - started < 5


def test_a_process_waits_for_the_search_and_can_be_stopped(tmp_path: Path):
    with locked(tmp_path / ".lock", what=tmp_path), pytest.raises(StoppedError, match="SIGTERM"):
        Study(GRID, tmp_path, stop=StopAfter(2))
    with locked(tmp_path / ".trial-0000.lock", what=tmp_path):
        study = Study(GRID, tmp_path)
        with pytest.raises(BusyError), study.claimed():
            pass
