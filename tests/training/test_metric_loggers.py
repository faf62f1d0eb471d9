"""Tests of metric loggers. wandb and mlflow are optional: without them, their tests skip."""

import time
from pathlib import Path

import pytest

from wsi_idc.core.errors import RunError
from wsi_idc.training import metric_loggers
from wsi_idc.training.metric_loggers import open_logger, parse_loggers
from wsi_idc.training.runs import MLFLOW, WANDB, Run

HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "val_auc": 0.5 + 0.1 * epoch, "learning_rate": 1e-3}
    for epoch in (1, 2, 3)
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    return run


def log_in_two_processes(name: str, run: Run) -> None:
    """Log two epochs, stop, resume, and log the third epoch."""
    first = open_logger(name, run, {"model": "cnn"})
    first.log(HISTORY[:1])
    first.log(HISTORY[:2])
    first.close(is_complete=False)
    if name == "tensorboard":
        time.sleep(1.1)  # readers sort the files by the second in their names
    second = open_logger(name, run, {"model": "cnn"})
    second.log(HISTORY)
    second.close(is_complete=True)


def test_names_are_checked_before_a_training(monkeypatch: pytest.MonkeyPatch):
    assert parse_loggers(None) == ("tensorboard",)
    assert parse_loggers("none") == ()
    assert parse_loggers("tensorboard, tensorboard") == ("tensorboard",)
    for names in ("tensorboard,none", "wandbs", ""):
        with pytest.raises(RunError, match="give tensorboard, wandb, mlflow, several of them, or"):
            parse_loggers(names)
    monkeypatch.setattr(metric_loggers.importlib.util, "find_spec", lambda name: None)
    assert parse_loggers(None) == ()
    with pytest.raises(RunError, match="wandb is not installed; run pip install wandb"):
        parse_loggers("wandb")


def test_tensorboard_has_each_epoch_once(run: Run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_in_two_processes("tensorboard", run)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["auc/val", "learning_rate", "loss/train"]
    points = [(event.step, event.value) for event in events.Scalars("loss/train")]
    assert points == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_wandb_resumes_its_run(run: Run, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="wandb is optional; install it with pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_in_two_processes("wandb", run)
    record = run.read_logger(WANDB)
    assert record["epochs"] == 3
    folders = list((run.folder / "wandb").glob("offline-run-*"))
    assert len(list((run.folder / "wandb").glob(f"offline-run-*/run-{record['id']}.wandb"))) == len(
        folders
    )


@pytest.mark.filterwarnings("ignore")  # of the packages below mlflow
def test_mlflow_resumes_its_run(run: Run, monkeypatch: pytest.MonkeyPatch):
    reason = "mlflow is optional; install it with pip install mlflow"
    mlflow = pytest.importorskip("mlflow", reason=reason)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_in_two_processes("mlflow", run)
    record = run.read_logger(MLFLOW)
    assert record["epochs"] == 3
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.absolute()}/mlflow.db")
    experiment = client.get_experiment_by_name("wsi-idc")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status) == (record["id"], "FINISHED")
    assert found.data.params == {"model": "cnn"}
    points = client.get_metric_history(record["id"], "loss/train")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_new_training_starts_a_new_run_of_a_logger(run: Run):
    run.write_logger(WANDB, id="a", epochs=2)
    assert run.read_logger(WANDB) == {"id": "a", "epochs": 2}
    run.write("running", {}, {})
    run.start({}, {})
    assert run.read_logger(WANDB) == {"epochs": 0}
    (run.folder / WANDB).write_text("[]")
    assert run.read_logger(WANDB) == {"epochs": 0}
