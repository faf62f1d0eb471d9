import importlib
import json
import logging
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend

from tests.cli.commands import Command
from tests.one_trial import ONE_TRIAL
from tests.packs import make_small_cohort
from tests.stops import StopAfter
from wsi_idc.cli.job import open_job
from wsi_idc.core import errors
from wsi_idc.data.pack import Pack
from wsi_idc.models.checkpoint import load_checkpoint
from wsi_idc.search.config import Range, SearchSpec
from wsi_idc.search.results import SearchResult
from wsi_idc.search.search import search
from wsi_idc.training.config import TrainConfig, resolve
from wsi_idc.training.runs import Run

FIXED = {"model": "cnn", "epochs": 1, "batch_size": 8, "split": "ratio:50/25/25"}
GRID = SearchSpec("grid", FIXED, {"learning_rate": (1e-3, 1e-2), "imbalance": ("none",)})
FOUR_TRIALS = ONE_TRIAL.replace("[1e-3]", "[1e-3, 1e-2]") + "weight_decay = [0.0, 0.1]\n"


def read_study(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Read the study as any user of optuna would."""
    backend = JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="search", storage=storage).trials


def states(result: SearchResult) -> list[tuple[int, str]]:
    return [(trial.number, trial.state) for trial in result.trials]


@pytest.fixture(scope="module")
def done(small: Pack, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Return a finished search over a grid of two points."""
    return search(GRID, small, folder=tmp_path_factory.mktemp("search") / "grid", device="cpu")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures of a training, which take longer than the training."""
    for name in ("draw_curves", "save_png", "augmented_samples"):
        monkeypatch.setattr(f"wsi_idc.training.logger.{name}", lambda *_, **__: None)


def test_a_finished_search_is_complete(done: SearchResult):
    assert {path.name for path in done.folder.iterdir() if not path.name.startswith(".")} == {
        *("search.json", "study.journal", "trials.csv", "search.png", "best.toml"),
        *("trial-0000", "trial-0001"),
    }
    trials = read_study(done.folder)
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * 2
    assert [trial.params for trial in trials] == list(GRID.points())
    best, other = done.trials
    assert best.value >= other.value
    assert done.best is best
    assert done.checkpoint == done.folder / f"trial-{best.number:04d}" / "best.pt"


def test_the_table_agrees_with_the_checkpoints(done: SearchResult):
    table = pd.read_csv(done.folder / "trials.csv")
    assert list(table) == [
        *("number", "state", "learning_rate", "imbalance", "average_precision", "auc", "f1"),
        *("sensitivity", "specificity", "threshold", "best_epoch", "seconds", "run", "reason"),
    ]
    assert table["average_precision"].is_monotonic_decreasing
    for row in table.to_dict("records"):
        checkpoint = load_checkpoint(Path(row["run"]) / "best.pt")
        assert checkpoint.config["learning_rate"] == row["learning_rate"]
        assert checkpoint.metrics["epoch"] == row["best_epoch"] == 1
        for name in ("average_precision", "auc", "f1", "sensitivity", "specificity"):
            assert checkpoint.metrics["val"][name] == pytest.approx(row[name], abs=1e-12)
        assert checkpoint.threshold == pytest.approx(row["threshold"], abs=1e-12)
        assert row["seconds"] > 0


def test_the_best_job_has_the_configuration_of_the_best_trial(done: SearchResult):
    job = open_job(done.folder / "best.toml", [])
    settings = dict(job.task(1).settings)
    assert (job.command, job.name) == ("train", "grid-best")
    assert settings.pop("out") == "runs/grid-best"
    config = TrainConfig(**settings)
    assert config == resolve(replace(GRID.config(done.best.point), split=config.split))
    assert config == TrainConfig(**load_checkpoint(done.checkpoint).config)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_point_is_trained_once(small: Pack, tmp_path: Path, sampler: str, caplog):
    spec = SearchSpec("s", FIXED, {"weight_decay": (0.0, 0.1)}, sampler=sampler, trials=5)
    with caplog.at_level("INFO", logger="wsi_idc"):
        result = search(spec, small, folder=tmp_path / "s", device="cpu")
    assert [trial.state for trial in result.trials] == ["complete"] * 5
    own = {trial.point["weight_decay"]: trial for trial in result.trials if trial.same_as is None}
    assert len(own) <= 2
    assert len(list((tmp_path / "s").glob("trial-*"))) == len(own)
    for trial in result.trials:
        first = own[trial.point["weight_decay"]]
        assert trial.same_as in (None, first.number)
        assert (trial.value, trial.config) == (first.value, first.config)
    assert caplog.text.count("the result is copied") == 5 - len(own)
    table = pd.read_csv(tmp_path / "s" / "trials.csv")
    assert all(Path(run).is_dir() for run in table["run"])
    assert result.checkpoint.exists()


def test_trials_with_one_encoder_share_its_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    pack = make_small_cohort(tmp_path / "small.h5")
    fixed = {**FIXED, "freeze": "all", "weights": "none"}
    spec = SearchSpec("probes", fixed, {"imbalance": ("none", "class-weights"), "views": (1, 2)})
    assert len(search(spec, pack, folder=tmp_path / "probes", device="cpu").trials) == 4
    computed = re.findall(r"features(?: of view 2)?: (\d+) computed", caplog.text)
    assert [int(number) for number in computed] == [48, 0, 32, 0, 0, 0]


def test_a_finished_search_is_only_read(done: SearchResult, small: Pack):
    before = (done.folder / "study.journal").read_bytes()
    assert search(GRID, small, folder=done.folder, device="cpu").trials == done.trials
    for changes, message in (
        ({"axes": {"learning_rate": (1e-3, 0.5)}}, r"rate \[0.001, 0.01\] -> \[0.001, 0.5"),
        ({"fixed": {**FIXED, "epochs": 2}}, r"\(epochs 1 -> 2\); give this search another name"),
        ({"metric": "auc"}, r'\(search.metric "average_precision" -> "auc"\)'),
    ):
        with pytest.raises(errors.JobError, match=message):
            search(replace(GRID, **changes), small, folder=done.folder, device="cpu")
    assert (done.folder / "study.journal").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "years of work", "has files but no search; give the search another name"),
        ("search.json", "{", "not readable .*; give the search another name"),
        ("search.json", "[]", "this is not a record of a search; give the search another name"),
        (
            "search.json",
            '{"format": "other"}',
            "this is not a record of a search; give the search another name",
        ),
    ],
)
def test_a_folder_of_other_files_does_not_change(
    small: Pack, tmp_path: Path, name: str, content: str, message: str
):
    (tmp_path / name).write_text(content)
    with pytest.raises(errors.JobError, match=message):
        search(GRID, small, folder=tmp_path)
    with pytest.raises(errors.JobError, match="is a file; give the search another name"):
        search(GRID, small, folder=tmp_path / name)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: content}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, errors.DeviceError, "abacus"),
        ({"axes": {"precision": ("fp32", "fp16")}}, errors.DeviceError, "fp16"),
        ({"fixed": {"model": "vgg"}}, errors.CheckpointError, "unknown model 'vgg'"),
        (
            {"axes": {"model": ("cnn", "resnet18")}, "fixed": {"epochs": 1}},
            errors.CheckpointError,
            "run `wsi-idc fetch-weights resnet18`",
        ),
        ({"axes": {"split": ("ratio:50/25/25", "none.csv")}}, errors.DataError, r"none\.csv"),
    ],
)
def test_a_refused_search_creates_no_folder(
    small: Pack, tmp_path: Path, changes: dict, error: type, message: str
):
    fixed = {name: value for name, value in FIXED.items() if name not in changes.get("axes", {})}
    spec = replace(GRID, **{"fixed": fixed, **changes})
    with pytest.raises(error, match=message):
        search(spec, small, folder=tmp_path / "search", device="cpu" if changes else "abacus")
    assert not (tmp_path / "search").exists()


def test_a_stopped_trial_is_resumed(small: Pack, done: SearchResult, tmp_path: Path):
    folder = tmp_path / "grid"
    for num_looks in (2, 2, 0):
        with pytest.raises(errors.StoppedError, match="run the same command again to resume"):
            search(GRID, small, folder=folder, device="cpu", stop=StopAfter(num_looks))
    assert [trial.state.name for trial in read_study(folder)] == ["RUNNING", "WAITING"]
    resumed = search(GRID, small, folder=folder, device="cpu")
    assert [trial.number for trial in resumed.trials] == [trial.number for trial in done.trials]
    assert [trial.value for trial in resumed.trials] == [trial.value for trial in done.trials]


@pytest.mark.parametrize(
    ("axes", "expected", "reason"),
    [
        ({"learning_rate": (1e9, 1e-3)}, [(1, "complete"), (0, "failed")], "loss is not finite"),
        ({"weights": ("imagenet",)}, [(0, "failed")], "has no ImageNet weights"),
    ],
)
def test_a_failed_trial_does_not_stop_the_others(
    small: Pack, tmp_path: Path, axes: dict, expected: list[tuple[int, str]], reason: str
):
    spec, folder = replace(GRID, axes=axes), tmp_path / "s"
    result = search(spec, small, folder=folder, device="cpu")
    assert states(result) == expected
    assert reason in result.trials[-1].reason
    assert search(spec, small, folder=folder, device="cpu").trials == result.trials
    assert reason in (folder / "trials.csv").read_text()
    has_best = len(expected) == 2
    assert (result.best is not None) == (result.checkpoint is not None) == has_best
    assert (folder / "best.toml").exists() == has_best


def test_a_poor_trial_is_pruned(cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsi_idc.search.study.PRUNE_AFTER_TRIALS", 1)
    monkeypatch.setattr("wsi_idc.search.study.PRUNE_AFTER_EPOCHS", 0)
    # The second trial learns almost nothing.
    axes = {"learning_rate": (3e-3, 1e-12)}
    spec = replace(GRID, fixed={**FIXED, "epochs": 2, "batch_size": 32}, axes=axes, prune=True)
    result = search(spec, cohort, folder=tmp_path / "s", device="cpu")
    assert states(result) == [(0, "complete"), (1, "pruned")]
    best, poor = result.trials
    assert poor.value < best.value
    history = (tmp_path / "s" / "trial-0001" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["val_average_precision"] == poor.value
    assert not Run(tmp_path / "s" / "trial-0001").is_finished()


def test_the_number_of_trials_may_be_increased(small: Pack, tmp_path: Path):
    spec = SearchSpec("r", FIXED, {"seed": Range(0, 99)}, sampler="random", trials=1)
    first = search(spec, small, folder=tmp_path / "s", device="cpu")
    more = search(replace(spec, trials=2), small, folder=tmp_path / "s", device="cpu")
    assert len(more.trials) == 2
    assert first.trials[0] in more.trials
    assert search(spec, small, folder=tmp_path / "s", device="cpu").trials == more.trials


def test_without_optuna_the_error_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "wsi_idc.search.study")
    with pytest.raises(errors.WsiIdcError, match=r"a search needs optuna .*; pip install optuna"):
        importlib.import_module("wsi_idc.search.study")


@pytest.mark.slow
def test_a_killed_process_loses_nothing_and_two_others_share_the_rest(
    small: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(small.path, tmp_path / "data")
    (tmp_path / "job.toml").write_text(FOUR_TRIALS.replace("batch_size = 32", "batch_size = 8"))
    folder = tmp_path / "runs" / "one"

    def launch() -> Command:
        return Command("search", "job.toml", "--device", "cpu")

    process, deadline = launch(), time.monotonic() + 120
    while not (folder / "trial-0001" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [trial.state.name for trial in read_study(folder)][:2] == ["COMPLETE", "RUNNING"]
    # A killed process may hold this lock; optuna waits 30 s before it removes the lock.
    (folder / "study.journal.lock").unlink(missing_ok=True)
    numbers = []
    for process in [launch(), launch()]:
        assert process.wait(200) == 0, process.text()
        lines = process.text().splitlines()
        numbers += [int(line.split()[2]) for line in lines if " done): " in line]
    assert sorted(numbers) == [1, 2, 3]
    trials = read_study(folder)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    points = [tuple(trial.params.values()) for trial in trials]
    assert points == [(1e-3, 0), (1e-3, 0.1), (1e-2, 0), (1e-2, 0.1)]
    runs = sorted(folder.glob("trial-*"))
    assert [run.name for run in runs] == [f"trial-{number:04d}" for number in range(4)]
    assert all(Run(run).is_finished() for run in runs)
    table = pd.read_csv(folder / "trials.csv")
    assert sorted(table["number"]) == list(range(4))
    assert set(table["state"]) == {"complete"}
