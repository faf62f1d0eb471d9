import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend

from tests.stops import StopAfter
from wsi_idc.cli.job import open_job
from wsi_idc.core.errors import BusyError, CheckpointError, DeviceError, JobError, StoppedError
from wsi_idc.core.locks import locked
from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.search import study as study_module
from wsi_idc.search.config import Range, SearchSpec
from wsi_idc.search.results import SearchResult, Trial, best_job, draw_search, rank_trials
from wsi_idc.search.search import search
from wsi_idc.search.study import Study
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.resolve_config import resolve
from wsi_idc.training.runs import Run

FIXED = {"model": "cnn", "epochs": 1, "batch_size": 32, "split": "ratio:50/25/25"}
GRID = SearchSpec("grid", FIXED, {"learning_rate": (1e-3, 1e-2), "imbalance": ("none",)})
LAUNCH = [sys.executable, "-m", "wsi_idc", "search", "job.toml"]
SIX = """
command = "search"
[config]
model = "cnn"
epochs = 1
batch_size = 32
split = "ratio:50/25/25"
[axes]
learning_rate = [1e-3, 3e-3, 1e-2]
weight_decay = [0.0, 0.1]
"""


def told(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Read the study as any other user of optuna would."""
    backend = JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="search", storage=storage).trials


@pytest.fixture(scope="module")
def done(cohort: Pack, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Return a finished search over a grid of two."""
    folder = tmp_path_factory.mktemp("search") / "grid"
    return search(GRID, cohort, folder=folder, device="cpu")


def test_a_finished_search_has_what_it_should(done: SearchResult):
    assert {path.name for path in done.folder.iterdir() if not path.name.startswith(".")} == {
        *("search.json", "study.journal", "trials.csv", "search.png", "best.toml"),
        *("trial-0000", "trial-0001"),
    }
    assert [trial.state for trial in told(done.folder)] == [optuna.trial.TrialState.COMPLETE] * 2
    assert [trial.params for trial in told(done.folder)] == list(GRID.points())
    best, other = done.trials
    assert best.value >= other.value
    assert done.best is best
    assert done.checkpoint == done.folder / f"trial-{best.number:04d}" / "best.pt"


def test_the_table_says_what_the_checkpoints_say(done: SearchResult):
    table = pd.read_csv(done.folder / "trials.csv")
    assert list(table) == [
        *("number", "state", "learning_rate", "imbalance", "average_precision", "auc", "f1"),
        *("sensitivity", "specificity", "best_epoch", "seconds", "run", "reason"),
    ]
    assert table["average_precision"].is_monotonic_decreasing
    for row in table.to_dict("records"):
        checkpoint = load_checkpoint(Path(row["run"]) / "best.pt")
        assert checkpoint.config["learning_rate"] == row["learning_rate"]
        assert checkpoint.metrics["epoch"] == row["best_epoch"] == 1
        for name in ("average_precision", "auc", "f1", "sensitivity", "specificity"):
            assert checkpoint.metrics["val"][name] == pytest.approx(row[name], abs=1e-12)
        assert row["seconds"] > 0


def test_the_best_job_gives_back_the_best_trials_configuration(done: SearchResult):
    job = open_job(done.folder / "best.toml", [])
    settings = dict(job.task(1).settings)
    assert (job.command, job.name) == ("train", "grid-best")
    assert settings.pop("out") == "runs/grid-best"
    config = TrainConfig(**settings)
    assert config == resolve(replace(GRID.config(done.best.point), split=config.split))
    assert config == TrainConfig(**load_checkpoint(done.checkpoint).config)


def test_a_finished_search_is_only_read(done: SearchResult, cohort: Pack):
    before = (done.folder / "study.journal").read_bytes()
    again = search(GRID, cohort, folder=done.folder, device="cpu")
    assert again.trials == done.trials
    assert (done.folder / "study.journal").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"axes": {"learning_rate": (1e-3, 0.5)}},
            r"axes.learning_rate \[0.001, 0.01\] -> \[0.001",
        ),
        ({"fixed": {**FIXED, "epochs": 2}}, r"\(epochs 1 -> 2\); give this one another name"),
        ({"metric": "auc"}, r'\(search.metric "average_precision" -> "auc"\)'),
    ],
)
def test_another_search_in_the_same_folder_is_refused(
    done: SearchResult, cohort: Pack, changed: dict, message: str
):
    before = (done.folder / "study.journal").read_bytes()
    with pytest.raises(JobError, match=message):
        search(replace(GRID, **changed), cohort, folder=done.folder, device="cpu")
    assert (done.folder / "study.journal").read_bytes() == before


def test_a_strangers_folder_is_not_touched(cohort: Pack, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(JobError, match="is not empty and not a search"):
        search(GRID, cohort, folder=tmp_path)
    with pytest.raises(JobError, match="is a file"):
        search(GRID, cohort, folder=tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}'])
def test_a_strangers_record_is_refused(cohort: Pack, tmp_path: Path, content: str):
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(JobError, match="give another name"):
        search(GRID, cohort, folder=tmp_path)


def test_what_can_be_refused_leaves_nothing_behind(cohort: Pack, tmp_path: Path):
    folder = tmp_path / "search"
    with pytest.raises(DeviceError):
        search(GRID, cohort, folder=folder, device="abacus")
    spec = replace(GRID, axes={"precision": ("fp32", "fp16")})
    with pytest.raises(DeviceError, match="fp16"):
        search(spec, cohort, folder=folder, device="cpu")
    with pytest.raises(CheckpointError, match="unknown model 'vgg'"):
        search(replace(GRID, fixed={"model": "vgg"}), cohort, folder=folder, device="cpu")
    spec = replace(GRID, axes={"model": ("cnn", "resnet18")}, fixed={"epochs": 1})
    with pytest.raises(CheckpointError, match="run `wsi-idc fetch-weights resnet18`"):
        search(spec, cohort, folder=folder, device="cpu")
    spec = replace(GRID, axes={"split": ("ratio:50/25/25", "none.csv")}, fixed={"model": "cnn"})
    with pytest.raises(Exception, match=r"none\.csv"):
        search(spec, cohort, folder=folder, device="cpu")
    assert not folder.exists()


def test_a_stopped_trial_goes_on_where_it_was(cohort: Pack, done: SearchResult, tmp_path: Path):
    folder = tmp_path / "grid"
    for num_looks in (2, 2, 0):
        with pytest.raises(StoppedError, match="run the same command again to resume"):
            search(GRID, cohort, folder=folder, device="cpu", stop=StopAfter(num_looks))
    assert [trial.state.name for trial in told(folder)] == ["RUNNING", "WAITING"]
    resumed = search(GRID, cohort, folder=folder, device="cpu")
    assert [(trial.number, trial.value) for trial in resumed.trials] == [
        (trial.number, trial.value) for trial in done.trials
    ]


def test_a_failed_trial_does_not_stop_the_others(cohort: Pack, tmp_path: Path):
    spec = replace(GRID, axes={"learning_rate": (1e9, 1e-3)})
    result = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    assert [(trial.number, trial.state) for trial in result.trials] == [
        (1, "complete"),
        (0, "failed"),
    ]
    assert "loss is not finite" in result.trials[1].reason
    again = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    assert again.having("failed") == result.having("failed")
    assert "loss is not finite" in (tmp_path / "s" / "trials.csv").read_text()


def test_weights_that_cannot_be_had_fail_their_trial_alone(cohort: Pack, tmp_path: Path):
    spec = replace(GRID, axes={"weights": ("imagenet", "none")})
    result = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    assert [(trial.number, trial.state) for trial in result.trials] == [
        (1, "complete"),
        (0, "failed"),
    ]
    assert "it has no ImageNet weights" in result.trials[1].reason


def test_where_all_fail_there_is_no_best(cohort: Pack, tmp_path: Path):
    spec = replace(GRID, axes={"learning_rate": (1e9,)})
    result = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    assert result.best is None
    assert result.checkpoint is None
    assert not (tmp_path / "s" / "best.toml").exists()


def test_a_poor_trial_is_pruned(cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study_module, "PRUNE_AFTER_TRIALS", 1)
    monkeypatch.setattr(study_module, "PRUNE_AFTER_EPOCHS", 0)
    # The second one learns next to nothing.
    spec = replace(
        GRID,
        fixed={**FIXED, "epochs": 2},
        axes={"learning_rate": (3e-3, 1e-12)},
        prune=True,
    )
    result = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    best, poor = result.trials
    assert (best.number, poor.number, poor.state) == (0, 1, "pruned")
    assert poor.value < best.value
    history = (tmp_path / "s" / "trial-0001" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["val_average_precision"] == poor.value
    assert not Run(tmp_path / "s" / "trial-0001").is_finished()


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_drawn_points_depend_on_the_seed_alone(sampler: str, tmp_path: Path):
    axes = {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "batch_size": Range(16, 64, step=16),
        "model": ("cnn", "cnn-bn"),
    }

    def draw(name: str, seed: int) -> list[dict]:
        spec = SearchSpec(name, {}, axes, sampler=sampler, trials=12, seed=seed)
        (tmp_path / name).mkdir()
        points = []
        while True:
            # As after a restart for each trial.
            study = Study(spec, tmp_path / name)
            with study.claimed() as claim:
                if claim is None:
                    return points
                points.append(claim.point)
                claim.complete(-claim.point["learning_rate"])

    points = draw("one", 0)
    assert len(points) == 12
    assert points == draw("two", 0) != draw("three", 1)
    assert len({point["learning_rate"] for point in points}) == 12
    assert {point["batch_size"] for point in points} <= {16, 32, 48, 64}
    assert all(type(point["batch_size"]) is int for point in points)
    assert all(1e-4 <= point["learning_rate"] <= 1e-2 for point in points)


def test_more_trials_may_be_asked_for_later(cohort: Pack, tmp_path: Path):
    spec = SearchSpec("r", FIXED, {"seed": Range(0, 99)}, sampler="random", trials=1)
    first = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    more = search(replace(spec, trials=2), cohort, folder=tmp_path / "s", device="cpu")
    assert len(more.trials) == 2
    assert first.trials[0] in more.trials
    fewer = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    assert fewer.trials == more.trials


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_claimed_trial_is_nobody_elses(sampler: str, tmp_path: Path):
    spec = SearchSpec("s", {}, {"seed": (0, 1)}, sampler=sampler, trials=2)
    one, other = Study(spec, tmp_path), Study(spec, tmp_path)
    with one.claimed() as first, other.claimed() as second, one.claimed() as third:
        assert (first.number, second.number, third) == (0, 1, None)
        second.complete(0.5)
    # Let go of without a word, as by a killed process: the next one takes it up.
    with other.claimed() as again:
        assert (again.number, again.point) == (0, first.point)
        again.complete(0.25)
    with one.claimed() as nothing:
        assert nothing is None
    assert [trial.value for trial in one.trials()] == [0.25, 0.5]


def test_a_value_is_told_once(tmp_path: Path):
    study = Study(GRID, tmp_path)
    with study.claimed() as claim:
        claim.complete(0.5)
        claim.complete(0.7)
        claim.fail("too late")
    assert study.trials()[0].value == 0.5


def test_half_a_line_of_a_killed_process_does_no_harm(tmp_path: Path):
    study = Study(GRID, tmp_path)
    with study.claimed() as claim, (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code":6,"wor')
        journal.flush()
        claim.complete(0.5)
    assert [trial.state for trial in Study(GRID, tmp_path).trials()] == ["complete", "waiting"]


def test_a_damaged_journal_is_one_line(tmp_path: Path):
    Study(GRID, tmp_path)
    journal = tmp_path / "study.journal"
    journal.write_text("nothing\n" + journal.read_text())
    with pytest.raises(JobError, match="damaged"):
        Study(GRID, tmp_path)


def test_the_lock_of_a_killed_process_is_broken_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "study.journal.lock").touch()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: 60 * clock())
    started = clock()
    assert len(Study(GRID, tmp_path).trials()) == 2
    assert clock() - started < 5


def test_a_process_waits_for_another_ones_claim_and_can_be_stopped(tmp_path: Path):
    with locked(tmp_path / ".lock", what=tmp_path), pytest.raises(StoppedError, match="SIGTERM"):
        Study(GRID, tmp_path, stop=StopAfter(2))
    with locked(tmp_path / ".trial-0000.lock", what=tmp_path):
        study = Study(GRID, tmp_path)
        with pytest.raises(BusyError), study.claimed():
            pass


def test_ranks_go_by_value_and_then_by_state():
    trials = [
        Trial(0, "failed", {}, 0.99),
        Trial(1, "waiting", {}),
        Trial(2, "complete", {}, 0.5),
        Trial(3, "pruned", {}, 0.9),
        Trial(4, "complete", {}, 0.7),
        Trial(5, "running", {}, 0.95),
        Trial(6, "complete", {}, 0.7),
    ]
    assert [trial.number for trial in rank_trials(trials)] == [4, 6, 2, 3, 5, 1, 0]


def test_the_figure_has_a_panel_an_axis(tmp_path: Path):
    axes = {"learning_rate": Range(1e-4, 1e-2, log=True), "batch_size": (64, 32), "seed": (0,)}
    spec = SearchSpec("s", {}, axes, sampler="random")
    trials = [
        Trial(0, "complete", {"learning_rate": 1e-3, "batch_size": 32, "seed": 0}, 0.8),
        Trial(1, "complete", {"learning_rate": 2e-3, "batch_size": 64, "seed": 0}, 0.9),
        Trial(2, "pruned", {"learning_rate": 4e-3, "batch_size": 64, "seed": 0}, 0.5),
        Trial(3, "running", {"learning_rate": 5e-3, "batch_size": 64, "seed": 0}),
    ]
    panels = draw_search(SearchResult(spec, tmp_path, rank_trials(trials))).axes
    assert [panel.get_title() for panel in panels] == ["learning rate", "batch size", "seed"]
    rate, batch, _ = panels
    assert rate.get_xscale() == "log"
    assert [text.get_text() for text in batch.get_xticklabels()] == ["32", "64"]
    points = {drawn.get_label(): drawn.get_offsets().tolist() for drawn in rate.collections}
    assert points == {
        "trial": [[2e-3, 0.9], [1e-3, 0.8]],
        "pruned trial": [[4e-3, 0.5]],
        "best": [[2e-3, 0.9]],
    }
    # A pruned trial has no part in the mean.
    means = [drawn for drawn in batch.collections if drawn.get_label() == "mean"]
    assert sorted(line.get_segments()[0][0].tolist() for line in means) == [
        [-0.25, 0.8],
        [0.75, 0.9],
    ]


def test_any_setting_survives_the_best_job(tmp_path: Path):
    config = TrainConfig(split='a "b"\\ü.csv', learning_rate=1e-5, weight_decay=0.0)
    best = Trial(7, "complete", {}, 0.5, config=config.as_dict())
    path = tmp_path / "best.toml"
    path.write_text(best_job(SearchResult(GRID, tmp_path, [best])), encoding="utf-8")
    settings = dict(open_job(path, []).task(1).settings)
    assert settings.pop("out") == "runs/grid-best"
    assert TrainConfig(**settings) == config


def test_without_optuna_the_reason_is_one_line():
    code = "import sys; sys.modules['optuna'] = None; import wsi_idc.search.search"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a search needs optuna" in found.stderr.splitlines()[-1]
    assert "pip install optuna" in found.stderr.splitlines()[-1]


@pytest.fixture
def six(cohort: Pack, tmp_path: Path) -> Path:
    """Return a folder with the data and a job file of six trials."""
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data")
    (tmp_path / "job.toml").write_text(SIX)
    return tmp_path


def launch(folder: Path) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(LAUNCH, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def assert_six(folder: Path) -> None:
    search_folder = folder / "runs" / "job"
    trials = told(search_folder)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert [trial.params for trial in trials] == [
        {"learning_rate": rate, "weight_decay": decay}
        for rate in (1e-3, 3e-3, 1e-2)
        for decay in (0.0, 0.1)
    ]
    runs = sorted(search_folder.glob("trial-*"))
    assert [run.name for run in runs] == [f"trial-{number:04d}" for number in range(6)]
    assert all(Run(run).is_finished() for run in runs)
    table = pd.read_csv(search_folder / "trials.csv")
    assert sorted(table["number"]) == list(range(6))
    assert set(table["state"]) == {"complete"}


@pytest.mark.slow
def test_two_processes_share_a_search(six: Path):
    processes = [launch(six) for _ in range(2)]
    logs = []
    for process in processes:
        log = process.communicate(timeout=200)[1]
        assert process.returncode == 0, log
        logs.append([line.split()[2] for line in log.splitlines() if " done): " in line])
    assert sorted(logs[0] + logs[1]) == list("012345")
    assert_six(six)


@pytest.mark.slow
def test_killed_processes_lose_nothing(six: Path):
    second = six / "runs" / "job" / "trial-0001" / "run.json"
    processes = [launch(six) for _ in range(2)]
    deadline = time.monotonic() + 120
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert any(trial.state.name == "RUNNING" for trial in told(six / "runs" / "job"))
    # Nobody waits for the lock that one of them may have held when it died.
    (six / "runs" / "job" / "study.journal.lock").unlink(missing_ok=True)
    process = launch(six)
    log = process.communicate(timeout=200)[1]
    assert process.returncode == 0, log
    assert_six(six)


def test_a_space_of_a_million_points_is_checked_at_once():
    axes = {name: tuple(range(1, 101)) for name in ("seed", "patience", "batch_size")}
    axes["split"] = ("auto", "canonical")
    spec = replace(GRID, fixed={}, sampler="random", trials=1, axes=axes)
    assert spec.num_points == 2_000_000
    assert [point["split"] for point in spec.points("split")] == ["auto", "canonical"]
    assert {point["seed"] for point in spec.points("split")} == {1}
