import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.stops import StopAfter
from tests.training.conftest import CONFIG, ONE_EPOCH, Fit
from wsi_idc.core.errors import BusyError, CheckpointError, DataError, RunError, StoppedError
from wsi_idc.core.locks import locked
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split, make_split
from wsi_idc.evaluation.evaluate import choose_patients
from wsi_idc.inference.predict import predict_logits
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import read_map
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.training.config import TrainConfig, resolved_config
from wsi_idc.training.logger import RunLogger
from wsi_idc.training.loss import Loss
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training, labeled_rows
from wsi_idc.training.state import Training


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def same_weights(a: Checkpoint, b: Checkpoint) -> bool:
    return all(torch.equal(a.state[name], b.state[name]) for name in a.state)


def history(run: Run) -> list[dict]:
    """Return the records of the epochs, without their durations."""
    durations = dict.fromkeys(("patches_per_second", "data_wait_share", "network_share"))
    return [record | durations for record in run.read_history() or []]


def run_of(checkpoint: Any) -> Run:
    return Run(checkpoint.source.parent)


def saved_state(run: Run) -> dict[str, Any]:
    return torch.load(run.last, weights_only=True)


def test_a_finished_run_is_complete(trained: Checkpoint, cohort: Pack):
    run = run_of(trained)
    names = {"run.json", "metrics.jsonl", "best.pt", "last.pt", ".lock"}
    names |= {"curves.png", "augment.png", "tensorboard"}
    assert {path.name for path in run.folder.iterdir()} == names
    config, split = TrainConfig(epochs=2, batch_size=16), make_split(cohort, "ratio:50/25/25")
    record = run.read()
    assert record["status"] == "finished"
    assert record["asked"] == resolved_config(config, cohort, split)
    epochs = history(run)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    best = max(epochs, key=lambda epoch: epoch["val_average_precision"])
    assert trained.metrics["epoch"] == best["epoch"]
    expected = pytest.approx(best["val_average_precision"], abs=1e-6)
    assert trained.metrics["val"]["average_precision"] == expected
    assert trained.split == split.roles
    assert 0 < trained.threshold < 1
    assert trained.provenance["data_fingerprint"] == cohort.info.source_fingerprint
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    assert trained.metrics["val"]["auc"] > 0.6


def test_a_stopped_training_resumes_to_the_same_weights(fit: Fit, run: Run, finished: Checkpoint):
    # The stops follow the last step of the first epoch and the second step of the second epoch.
    for num_looks, step in ((3, 4), (1, 2)):
        with pytest.raises(StoppedError, match="run the same command again to resume") as caught:
            fit(CONFIG, run, stop=StopAfter(num_looks))
        assert caught.value.exit_code == 75
        assert saved_state(run)["place"]["step"] == step
    resumed = fit(CONFIG, run)
    assert same_weights(resumed, finished)
    for name in ("temperature", "threshold", "smoothing"):
        assert getattr(resumed, name) == getattr(finished, name)
    assert history(run) == history(run_of(finished))
    shares = ["network_share" in epoch for epoch in run.read_history() or []]
    assert shares == [False, True]  # the first epoch had no step left to measure


def test_a_training_with_all_options_resumes_to_the_same_weights(
    fit: Fit, run: Run, tmp_path: Path
):
    config = replace(CONFIG, optimizer="sgd", schedule="plateau", imbalance="oversample", freeze=1)
    config = replace(config, augment="strong", mixup=0.4, label_smoothing=0.1, layer_decay=0.8)
    complete = fit(config, Run(tmp_path / "complete"))
    for num_looks in (2, 3):
        with pytest.raises(StoppedError):
            fit(config, run, stop=StopAfter(num_looks))
    assert same_weights(fit(config, run), complete)


def test_a_kill_before_the_run_is_marked_finished_does_no_harm(fit: Fit, run: Run):
    first = fit(ONE_EPOCH, run)
    run.write("running", run.read()["asked"], {})
    again = fit(ONE_EPOCH, run)
    assert same_weights(again, first)
    assert again.threshold == first.threshold


def test_a_kill_before_an_epoch_is_logged_loses_no_record(
    fit: Fit, run: Run, finished: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLogger, "log_epoch", Mock(side_effect=KeyboardInterrupt))
        fit(CONFIG, run)
    assert not (run.folder / "metrics.jsonl").exists()
    fit(CONFIG, run)
    assert history(run) == history(run_of(finished))


def test_a_finished_run_is_not_trained_again(fit: Fit, finished: Checkpoint):
    run = run_of(finished)
    before = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    assert same_weights(fit(CONFIG, run), finished)
    with pytest.raises(RunError, match="seed 0 -> 1"):
        fit(replace(CONFIG, seed=1), run)
    config = TrainConfig(model="resnet50", weights="imagenet")
    with pytest.raises(CheckpointError, match="fetch-weights"):
        fit(config, run, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_another_process_finishes_meanwhile_is_kept(
    fit: Fit, run: Run, monkeypatch: pytest.MonkeyPatch, seed: int
):
    files = {}

    def build_slowly(*arguments: Any, **options: Any) -> Training:
        monkeypatch.undo()
        fit(replace(ONE_EPOCH, seed=seed), run)
        files.update({path.name: path.read_bytes() for path in run.folder.glob("*.*")})
        return build_training(*arguments, **options)

    monkeypatch.setattr("wsi_idc.training.train.build_training", build_slowly)
    if seed == 0:
        assert fit(ONE_EPOCH, run).source == run.best
    else:
        with pytest.raises(RunError, match="seed 1 -> 0"):
            fit(ONE_EPOCH, run)
    assert {path.name: path.read_bytes() for path in run.folder.glob("*.*")} == files


def test_overwriting_replaces_the_run_and_keeps_other_files(
    fit: Fit, run: Run, finished: Checkpoint
):
    fit(ONE_EPOCH, run)
    (run.folder / "eval-test").mkdir()
    (run.folder.parent / "link.pt").symlink_to(run.best)
    before = run.best.read_bytes()
    for weights in (run.best, run.folder.parent / "link.pt", run.last):
        config = replace(ONE_EPOCH, weights=str(weights))
        with pytest.raises(RunError, match="would delete the initial weights"):
            fit(config, run, overwrite=True)
    assert run.best.read_bytes() == before
    again = fit(replace(ONE_EPOCH, weights=str(finished.source)), run, overwrite=True)
    assert again.config["weights"] == str(finished.source)
    assert (run.folder / "eval-test").is_dir()


def test_a_stopped_training_that_overwrites_is_resumed(fit: Fit, run: Run, finished: Checkpoint):
    fit(replace(ONE_EPOCH, seed=1), run)
    for num_looks in (1, 1):
        with pytest.raises(StoppedError):
            fit(CONFIG, run, overwrite=True, stop=StopAfter(num_looks))
    assert saved_state(run)["place"]["step"] == 4
    assert same_weights(fit(CONFIG, run, overwrite=True), finished)


def test_two_processes_do_not_train_in_one_folder(
    fit: Fit, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wsi_idc.core.locks._SECONDS_BETWEEN_TRIES", 0.6)
    with locked(run.folder / ".lock", what=run.folder), pytest.raises(BusyError):
        fit(CONFIG, run)


@pytest.mark.parametrize("imbalance", ["class-weights", "oversample", "none"])
def test_the_shift_of_the_log_odds_is_undone_in_the_bias(
    fit: Fit, run: Run, small: Pack, split: Split, imbalance: str
):
    config = replace(ONE_EPOCH, imbalance=imbalance, ema=0.0, seed=2)
    checkpoint = fit(config, run)
    raw = saved_state(run)["network"]["classifier.bias"]
    is_train = [patient in split.patients("train") for patient in small.patient_of]
    label = small.index["label"].to_numpy()[is_train]
    shift = math.log((label == 0).sum() / (label == 1).sum()) if imbalance != "none" else 0.0
    assert shift != 0 or imbalance == "none"
    assert checkpoint.state["classifier.bias"][0] == raw[0]
    assert float(raw[1] - checkpoint.state["classifier.bias"][1]) == pytest.approx(shift, abs=1e-5)


def test_early_stopping_waits_for_patience_epochs(fit: Fit, run: Run):
    # With a learning rate of almost zero a later epoch is better only by chance.
    checkpoint = fit(replace(CONFIG, epochs=8, patience=1, learning_rate=1e-12), run)
    assert len(history(run)) == min(8, checkpoint.metrics["epoch"] + 1)


@pytest.mark.parametrize("monitor", ["loss", "largest_f1", "largest_balanced_accuracy", "auc"])
def test_the_best_epoch_has_the_best_monitored_value(fit: Fit, run: Run, monitor: str):
    checkpoint = fit(replace(CONFIG, monitor=monitor.removeprefix("largest_"), seed=1), run)
    choose = min if monitor == "loss" else max
    best = choose(history(run), key=lambda epoch: epoch[f"val_{monitor}"])
    assert checkpoint.metrics["epoch"] == best["epoch"]


@pytest.mark.parametrize("imbalance", ["class-weights", "oversample"])
def test_an_epoch_is_compared_by_its_weights_as_they_are_kept(
    fit: Fit, run: Run, small: Pack, imbalance: str
):
    checkpoint = fit(replace(ONE_EPOCH, imbalance=imbalance, seed=2), run)
    rows = labeled_rows(small, checkpoint.patients("val"))
    logit = predict_logits(checkpoint.build(), small, rows, device_config=select_device("cpu"))
    label = torch.from_numpy(small.index["label"].to_numpy()[rows].astype(np.int64))
    loss = float(torch.nn.functional.cross_entropy(torch.from_numpy(logit), label))
    (epoch,) = history(run)
    assert epoch["val_loss"] == pytest.approx(loss, abs=1e-5)
    assert epoch["val_largest_f1"] == checkpoint.metrics["val"]["f1"]  # at its threshold


def test_epochs_are_logged_and_reported_when_they_are_saved(
    fit: Fit, run: Run, finished: Checkpoint, caplog: pytest.LogCaptureFixture
):
    epochs = []

    def on_epoch(record: dict) -> None:
        assert saved_state(run)["place"]["history"][-1] == record
        epochs.append(record["epoch"])

    with caplog.at_level(logging.INFO, logger="wsi_idc"):
        checkpoint = fit(replace(CONFIG, seed=1), run, on_epoch=on_epoch, micro_batch=5)
    assert epochs == [1, 2]
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("epoch 1/2: train loss ") and ", AP " in line for line in lines)
    assert not same_weights(checkpoint, finished)  # because of the seed
    assert saved_state(run)["micro_batch"] is None  # because the memory was sufficient


DIVERGING = replace(CONFIG, model="cnn", learning_rate=1e9)
# The loss of the single step is finite, but the weights after it are not.
DIVERGING_AT_ONCE = TrainConfig(
    model="cnn", batch_size=10_000, optimizer="sgd", learning_rate=1e30, clip_norm=0.0
)


@pytest.mark.parametrize(
    ("config", "fails", "message"),
    [
        (DIVERGING, None, "not finite in epoch 1 .*; give a lower --learning-rate"),
        (DIVERGING_AT_ONCE, None, r"not finite in epoch 1 .no model is saved.; give a lower"),
        (CONFIG, Mock(side_effect=torch.OutOfMemoryError), "memory on cpu; give --micro-batch 4"),
    ],
)
def test_failed_trainings_are_one_line(
    fit: Fit, run: Run, monkeypatch: pytest.MonkeyPatch, config: Any, fails: Any, message: str
):
    if fails:
        monkeypatch.setattr("wsi_idc.training.validation.predict_logits", fails)
    with pytest.raises(RunError, match=message) as caught:
        fit(config, run)
    assert "\n" not in str(caught.value)


def test_a_refused_training_changes_no_folder(fit: Fit, run: Run, tmp_path: Path):
    with pytest.raises(CheckpointError, match="has no ImageNet weights"):
        fit(replace(CONFIG, weights="imagenet"), run)
    assert not run.folder.exists()
    (tmp_path / "best.pt").write_text("of another program")
    with pytest.raises(RunError, match="is not empty and is not a run"):
        fit(CONFIG, Run(tmp_path), overwrite=True)
    assert (tmp_path / "best.pt").read_text() == "of another program"


def test_the_state_before_a_loss_that_is_not_finite_is_kept(
    fit: Fit, run: Run, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(StoppedError):
        fit(CONFIG, run, stop=StopAfter(4))  # in the second epoch
    before = run.last.read_bytes(), run.best.read_bytes()
    loss = torch.tensor(math.nan)
    monkeypatch.setattr(Loss, "loss_sum", lambda *_: loss.requires_grad_())
    with pytest.raises(RunError, match=r"not finite in epoch 2 .the best model is in .*best\.pt"):
        fit(CONFIG, run, save_minutes=0)
    assert (run.last.read_bytes(), run.best.read_bytes()) == before


def test_another_threshold_needs_no_other_training(fit: Fit, run: Run):
    first = fit(CONFIG, run)
    config = replace(CONFIG, target_sensitivity=0.4)
    second = fit(config, run)
    assert second.threshold > first.threshold
    assert 0.4 <= second.metrics["val"]["sensitivity"] < first.metrics["val"]["sensitivity"]
    assert second.metrics["epoch"] == first.metrics["epoch"]
    assert second.temperature == pytest.approx(first.temperature, rel=1e-4)
    assert same_weights(second, first)
    assert run.read()["best"] == second.metrics
    modified = run.best.stat().st_mtime_ns
    assert fit(config, run).fingerprint == second.fingerprint
    assert run.best.stat().st_mtime_ns == modified
    # Checkpoints of early versions have no smoothing.
    save_checkpoint(run.best, replace(second, smoothing=None))
    third = fit(config, run)
    assert third.smoothing is not None
    assert third.metrics["val"]["ece_uncalibrated"] is not None
    assert load_checkpoint(run.best).fingerprint == third.fingerprint


def test_patients_of_the_initial_weights_are_never_unseen(
    fit: Fit, small: Pack, split: Split, tmp_path: Path, finished: Checkpoint, caplog: Any
):
    # In another split train and test patients have changed places.
    swapped = {"train": "test", "test": "train", "val": "val"}
    other = replace(split, roles={p: swapped[role] for p, role in split.roles.items()})
    config = replace(ONE_EPOCH, weights=str(finished.source))
    with caplog.at_level(logging.WARNING, logger="wsi_idc"):
        second = fit(config, Run(tmp_path / "b"), split=other)
    assert "was trained on" in caplog.text
    assert set(second.inherited) == finished.patients("train")
    assert second.patients("train") == finished.patients("train") | set(other.patients("train"))
    predictor = Predictor((second,))
    with pytest.raises(DataError, match="was trained on"):
        choose_patients(predictor, small, "test")
    patient = next(patient for patient in second.inherited if other.roles[patient] == "test")
    builder = MapBuilder(
        predictor, select_device("cpu"), tmp_path / "maps", cam=None, with_image=False
    )
    builder.build(PackSource(small, [patient]))
    assert read_map(tmp_path / "maps" / f"{patient}.h5").model["role_of_patient"] == "train"
    # The same holds for a training that starts from the second one.
    third = fit(replace(ONE_EPOCH, weights=str(second.source)), Run(tmp_path / "c"))
    assert set(third.inherited) == second.patients("train")
