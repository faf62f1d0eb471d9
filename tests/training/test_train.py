import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.stops import StopAfter
from wsi_idc.core.errors import BusyError, CheckpointError, DataError, RunError, StoppedError
from wsi_idc.core.locks import locked
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split, make_split
from wsi_idc.evaluation.evaluate import choose_patients
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import read_map
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.logger import RunLogger
from wsi_idc.training.resolve_config import resolve, resolved_config
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.state import Training
from wsi_idc.training.train import train

CONFIG = TrainConfig(epochs=2, batch_size=16)


@pytest.fixture
def compute() -> DeviceConfig:
    return select_device("cpu")


@pytest.fixture
def split(cohort: Pack) -> Split:
    return make_split(cohort, "ratio:50/25/25")


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def history(run: Run) -> list[dict]:
    """Return the epochs' records, but for how long they took."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    took = dict.fromkeys(("patches_per_second", "data_wait_share", "network_share"))
    return [json.loads(line) | took for line in lines]


def test_a_finished_run_has_what_it_should(trained: Checkpoint, cohort: Pack, split: Split):
    assert trained.source is not None
    folder = trained.source.parent
    names = {"run.json", "metrics.jsonl", "best.pt", "last.pt", ".lock"}
    names |= {"curves.png", "augment.png", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["asked"] == resolved_config(CONFIG, cohort, split)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    best = max(history, key=lambda epoch: epoch["val_average_precision"])
    assert trained.metrics["epoch"] == best["epoch"]
    assert trained.metrics["val"]["average_precision"] == pytest.approx(
        best["val_average_precision"], abs=1e-6
    )
    assert trained.split == split.roles
    assert 0 < trained.threshold < 1
    assert trained.provenance["data_fingerprint"] == cohort.info.source_fingerprint


def test_two_epochs_learn_something(trained: Checkpoint):
    history = (trained.source.parent / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in history]
    assert losses[1] < losses[0]
    assert trained.metrics["val"]["auc"] > 0.6


def test_the_input_is_normalised_by_the_train_patients_alone(
    trained: Checkpoint, cohort: Pack, split: Split
):
    member = np.isin(cohort.patient_of, split.patients("train"))
    pixels = cohort.patches[member] / 255
    assert trained.input.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-6)
    assert trained.input.std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-6)


def test_a_stopped_training_resumes_to_the_same_weights(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "stopped")
    for num_looks in (2, 5, 3):
        with pytest.raises(StoppedError, match="run the same command again to resume") as caught:
            train(CONFIG, cohort, split, run=run, device_config=compute, stop=StopAfter(num_looks))
        assert caught.value.exit_code == 75
    resumed = train(CONFIG, cohort, split, run=run, device_config=compute)
    assert same_weights(resumed, trained)
    assert resumed.temperature == trained.temperature
    assert resumed.threshold == trained.threshold
    assert history(run) == history(Run(trained.source.parent))


def test_a_stop_at_the_last_step_of_an_epoch_leaves_no_trace_in_its_record(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "stopped")
    num_steps = build_training(
        resolve(CONFIG), cohort, split, run=run, device_config=compute
    ).steps_per_epoch
    with pytest.raises(StoppedError):
        train(CONFIG, cohort, split, run=run, device_config=compute, stop=StopAfter(num_steps - 1))
    assert torch.load(run.last, weights_only=True)["place"]["step"] == num_steps
    train(CONFIG, cohort, split, run=run, device_config=compute)
    assert history(run) == history(Run(trained.source.parent))
    shares = ["network_share" in epoch for epoch in run.read_history()]
    assert shares == [False, True]  # nothing was measured of the first epoch's network


def test_a_kill_before_the_run_is_marked_finished_does_no_harm(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "run")
    config = replace(CONFIG, epochs=1)
    first = train(config, cohort, split, run=run, device_config=compute)
    record = run.read()
    run.write("running", record["asked"], {})
    again = train(config, cohort, split, run=run, device_config=compute)
    assert same_weights(again, first)
    assert again.threshold == first.threshold


def test_a_finished_run_is_not_trained_again(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig
):
    run = Run(trained.source.parent)
    before = run.best.stat().st_mtime_ns
    assert same_weights(train(CONFIG, cohort, split, run=run, device_config=compute), trained)
    assert run.best.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("other", "message"), [(CONFIG, None), (replace(CONFIG, seed=1), "seed 1 -> 0")]
)
def test_a_run_that_another_process_finishes_meanwhile_is_kept(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: TrainConfig,
    message: str | None,
):
    run = Run(tmp_path / "run")
    left = {}

    def set_up_slowly(*arguments: Any, **options: Any) -> Training:
        monkeypatch.undo()
        train(replace(other, epochs=1), cohort, split, run=run, device_config=compute)
        left.update({path.name: path.read_bytes() for path in run.folder.glob("*.*")})
        return build_training(*arguments, **options)

    monkeypatch.setattr("wsi_idc.training.train.build_training", set_up_slowly)
    wanted = replace(CONFIG, epochs=1)
    if message:
        with pytest.raises(RunError, match=message):
            train(wanted, cohort, split, run=run, device_config=compute)
    else:
        assert train(wanted, cohort, split, run=run, device_config=compute).source == run.best
    assert {path.name: path.read_bytes() for path in run.folder.glob("*.*")} == left


def test_overwriting_spares_what_is_not_the_runs(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "run")
    train(replace(CONFIG, epochs=1), cohort, split, run=run, device_config=compute)
    (run.folder / "eval-test").mkdir()
    other = replace(CONFIG, epochs=1, seed=1)
    again = train(other, cohort, split, run=run, device_config=compute, overwrite=True)
    assert again.config["seed"] == 1
    assert (run.folder / "eval-test").is_dir()


def test_overwriting_spares_the_weights_that_it_would_start_from(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "run")
    train(replace(CONFIG, epochs=1), cohort, split, run=run, device_config=compute)
    (tmp_path / "link.pt").symlink_to(run.best)
    before = run.best.read_bytes()
    for weights in (run.best, tmp_path / "link.pt", run.last):
        config = replace(CONFIG, epochs=1, weights=str(weights))
        with pytest.raises(
            RunError, match="belongs to this run and would be deleted; give another --out"
        ):
            train(config, cohort, split, run=run, device_config=compute, overwrite=True)
    assert run.best.read_bytes() == before
    config = replace(CONFIG, epochs=1, weights=str(trained.source))
    again = train(config, cohort, split, run=run, device_config=compute, overwrite=True)
    assert again.config["weights"] == str(trained.source)


def test_overwriting_a_strangers_folder_is_refused(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    (tmp_path / "best.pt").write_text("of another program")
    with pytest.raises(RunError, match="is not empty and not a run"):
        train(CONFIG, cohort, split, run=Run(tmp_path), device_config=compute, overwrite=True)
    assert (tmp_path / "best.pt").read_text() == "of another program"


def test_a_refused_overwrite_costs_nothing(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig
):
    run = Run(trained.source.parent)
    config = TrainConfig(model="resnet50", weights="imagenet")
    with pytest.raises(CheckpointError, match="fetch-weights"):
        train(config, cohort, split, run=run, device_config=compute, overwrite=True)
    assert load_checkpoint(run.best).fingerprint == trained.fingerprint


def test_what_is_left_open_is_written_down(cohort: Pack, split: Split):
    asked = resolved_config(TrainConfig(), cohort, split)
    assert (asked["weights"], asked["learning_rate"]) == ("none", 1e-3)
    asked = resolved_config(TrainConfig(model="resnet18"), cohort, split)
    assert (asked["weights"], asked["learning_rate"]) == ("imagenet", 3e-4)


def test_another_resolution_is_another_training(cohort: Pack, split: Split):
    finer = Pack(cohort.path)
    finer.info = replace(finer.info, mpp=0.5)
    assert resolved_config(CONFIG, finer, split) != resolved_config(CONFIG, cohort, split)


def test_other_settings_in_the_same_folder_are_refused(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig
):
    run = Run(trained.source.parent)
    with pytest.raises(RunError, match="seed 0 -> 1"):
        train(replace(CONFIG, seed=1), cohort, split, run=run, device_config=compute)


def test_two_processes_do_not_train_in_one_folder(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path)
    with locked(tmp_path / ".lock", what=tmp_path), pytest.raises(BusyError):
        train(CONFIG, cohort, split, run=run, device_config=compute)


def test_the_seed_decides_the_weights(
    cohort: Pack, split: Split, trained: Checkpoint, compute: DeviceConfig, tmp_path: Path
):
    other = train(
        replace(CONFIG, seed=1, epochs=1),
        cohort,
        split,
        run=Run(tmp_path / "r"),
        device_config=compute,
    )
    assert not same_weights(other, trained)


@pytest.mark.parametrize("imbalance", ["class-weights", "oversample", "none"])
def test_what_evens_the_classes_out_is_undone_in_the_bias(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path, imbalance: str
):
    config = replace(CONFIG, epochs=1, imbalance=imbalance, ema=0.0)
    run = Run(tmp_path / "run")
    finished = train(config, cohort, split, run=run, device_config=compute)
    raw = torch.load(run.last, weights_only=True)["network"]["classifier.bias"]
    label = cohort.index["label"].to_numpy()[np.isin(cohort.patient_of, split.patients("train"))]
    shift = math.log((label == 0).sum() / (label == 1).sum()) if imbalance != "none" else 0.0
    assert finished.state["classifier.bias"][0] == raw[0]
    assert float(raw[1] - finished.state["classifier.bias"][1]) == pytest.approx(shift, abs=1e-5)


def test_early_stopping_waits_for_patience_epochs(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    # A learning rate of next to nothing: only chance makes a later epoch better.
    config = TrainConfig(epochs=8, patience=1, batch_size=16, learning_rate=1e-12)
    run = Run(tmp_path / "run")
    finished = train(config, cohort, split, run=run, device_config=compute)
    history = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert len(history) == min(8, finished.metrics["epoch"] + 1)


def test_a_loss_that_is_not_finite_stops_in_one_line(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    config = TrainConfig(model="cnn", epochs=2, batch_size=16, learning_rate=1e9)
    with pytest.raises(RunError, match="not finite in epoch") as caught:
        train(config, cohort, split, run=Run(tmp_path / "run"), device_config=compute)
    assert "lower --learning-rate" in str(caught.value)


def test_imagenet_weights_for_a_model_from_scratch_leave_nothing_behind(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    with pytest.raises(CheckpointError, match="it has no ImageNet weights"):
        train(
            replace(CONFIG, weights="imagenet"),
            cohort,
            split,
            run=Run(tmp_path / "run"),
            device_config=compute,
        )
    assert not (tmp_path / "run").exists()


def test_unknown_labels_are_never_trained_on(cohort: Pack, split: Split, compute: DeviceConfig):
    blinded = Pack(cohort.path)
    blinded.index.loc[::2, "label"] = -1
    run = Run(Path("unused"))
    training = build_training(resolve(CONFIG), blinded, split, run=run, device_config=compute)
    for rows in training.rows.values():
        assert (rows % 2 == 1).all()


def test_epochs_are_logged_in_words(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.INFO, logger="wsi_idc"):
        train(
            replace(CONFIG, epochs=1),
            cohort,
            split,
            run=Run(tmp_path / "run"),
            device_config=compute,
        )
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("epoch 1/1: train loss ") and ", AP 0." in line for line in lines)


EVERYTHING = replace(
    CONFIG,
    optimizer="sgd",
    schedule="plateau",
    imbalance="oversample",
    augment="strong",
    mixup=0.4,
    label_smoothing=0.1,
    freeze=1,
    layer_decay=0.8,
)


def test_a_training_with_everything_on_resumes_to_the_same_weights(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    whole = train(EVERYTHING, cohort, split, run=Run(tmp_path / "whole"), device_config=compute)
    run = Run(tmp_path / "stopped")
    for num_looks in (3, 8):
        with pytest.raises(StoppedError):
            train(
                EVERYTHING, cohort, split, run=run, device_config=compute, stop=StopAfter(num_looks)
            )
    assert same_weights(train(EVERYTHING, cohort, split, run=run, device_config=compute), whole)


def test_a_batch_in_parts_is_a_batch(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    # Without batch norm and dropout the parts add up to the whole.
    monkeypatch.setattr("wsi_idc.models.cnn.DROPOUT", 0.0)
    config = replace(CONFIG, model="cnn", epochs=1, optimizer="sgd", mixup=0.4, label_smoothing=0.1)
    whole, parts = (
        train(
            config,
            cohort,
            split,
            run=Run(tmp_path / str(micro_batch)),
            device_config=compute,
            micro_batch=micro_batch,
        )
        for micro_batch in (0, 5)
    )
    for name, value in whole.state.items():
        torch.testing.assert_close(parts.state[name], value, rtol=1e-4, atol=1e-5)


def test_out_of_memory_is_answered_by_smaller_parts(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    forward = PatchClassifier.forward

    def small_device(self: PatchClassifier, patches: torch.Tensor) -> torch.Tensor:
        if self.training and len(patches) > 4:
            raise torch.OutOfMemoryError("made")
        return forward(self, patches)

    run = Run(tmp_path / "run")
    asked = train(
        replace(CONFIG, epochs=1), cohort, split, run=run, device_config=compute, micro_batch=4
    )
    monkeypatch.setattr(PatchClassifier, "forward", small_device)
    run = Run(tmp_path / "answered")
    answered = train(replace(CONFIG, epochs=1), cohort, split, run=run, device_config=compute)
    assert same_weights(answered, asked)
    assert torch.load(run.last, weights_only=True)["micro_batch"] == 4
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert lines == [
        "out of memory on cpu: computing 8 patches at once from now on, still 16 per step",
        "out of memory on cpu: computing 4 patches at once from now on, still 16 per step",
    ]


def test_a_device_too_small_for_one_patch_is_an_error(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def full(self: PatchClassifier, patches: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("made")

    monkeypatch.setattr(PatchClassifier, "forward", full)
    with pytest.raises(RunError, match="out of memory on cpu with 1 patches at once"):
        train(CONFIG, cohort, split, run=Run(tmp_path / "run"), device_config=compute)


def test_the_state_before_a_loss_that_is_not_finite_is_kept(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = Run(tmp_path / "run")
    with pytest.raises(StoppedError):
        # In the second epoch: there is a best one.
        train(CONFIG, cohort, split, run=run, device_config=compute, stop=StopAfter(9))
    before = run.last.read_bytes(), run.best.read_bytes()
    place = torch.load(run.last, weights_only=True)["place"]
    assert (place["epoch"], place["best_epoch"]) == (1, 1)
    loss = torch.tensor(math.nan)
    monkeypatch.setattr("wsi_idc.training.loss.Loss.loss_sum", lambda *_: loss.requires_grad_())
    with pytest.raises(RunError, match=r"not finite in epoch 2 .the best so far is .*best\.pt"):
        train(CONFIG, cohort, split, run=run, device_config=compute, save_minutes=0)
    assert (run.last.read_bytes(), run.best.read_bytes()) == before


def test_a_frozen_backbone_stays_as_it_is(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    config = replace(CONFIG, freeze=1, epochs=1, ema=0.0, imbalance="none")
    finished = train(config, cohort, split, run=Run(tmp_path / "run"), device_config=compute)
    training = build_training(
        resolve(config), cohort, split, run=Run(tmp_path / "unused"), device_config=compute
    )
    start = training.classifier.network.state_dict()
    changed = {name for name in start if not torch.equal(start[name], finished.state[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("monitor", ["loss", "f1", "auc"])
def test_the_best_epoch_is_that_of_what_is_monitored(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path, monitor: str
):
    run = Run(tmp_path / "run")
    config = replace(CONFIG, monitor=monitor)
    finished = train(config, cohort, split, run=run, device_config=compute)
    history = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    choose = min if monitor == "loss" else max
    best = choose(history, key=lambda epoch: epoch[f"val_{monitor}"])
    assert finished.metrics["epoch"] == best["epoch"]


def test_each_epoch_is_told_when_it_is_saved(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run, seen = Run(tmp_path / "run"), []

    def on_epoch(record: dict) -> None:
        assert torch.load(run.last, weights_only=True)["place"]["history"][-1] == record
        seen.append(record["epoch"])

    train(CONFIG, cohort, split, run=run, device_config=compute, on_epoch=on_epoch)
    assert seen == [1, 2]


def test_another_file_of_weights_is_another_training(
    cohort: Pack, split: Split, trained: Checkpoint, tmp_path: Path
):
    file = tmp_path / "start.pt"
    config = replace(CONFIG, weights=str(file))
    with pytest.raises(RunError, match="No such file"):
        resolved_config(config, cohort, split)
    file.write_bytes(b"one")
    one = resolved_config(config, cohort, split)
    file.write_bytes(b"other")
    assert resolved_config(config, cohort, split) != one


def test_a_kill_before_the_last_epoch_is_noted_loses_no_record(
    cohort: Pack,
    split: Split,
    trained: Checkpoint,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = Run(tmp_path / "run")
    note = RunLogger.log_epoch

    def killed(journal: RunLogger) -> None:
        if journal._training.state.epoch == 2:
            raise KeyboardInterrupt
        note(journal)

    monkeypatch.setattr(RunLogger, "log_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, cohort, split, run=run, device_config=compute)
    assert len(history(run)) == 1
    train(CONFIG, cohort, split, run=run, device_config=compute)
    assert history(run) == history(Run(trained.source.parent))


def test_an_overwriting_training_that_was_stopped_goes_on(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    run = Run(tmp_path / "run")
    config = replace(CONFIG, epochs=1)
    first = train(config, cohort, split, run=run, device_config=compute)
    stops = StopAfter(3), StopAfter(2), None
    for stop in stops[:2]:
        with pytest.raises(StoppedError):
            train(config, cohort, split, run=run, device_config=compute, overwrite=True, stop=stop)
    assert torch.load(run.last, weights_only=True)["place"]["step"] == 7
    again = train(config, cohort, split, run=run, device_config=compute, overwrite=True)
    assert same_weights(again, first)


def test_weights_that_are_not_finite_after_the_last_step_are_no_checkpoints_fault(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    # One step an epoch: its loss is finite, what it does to the weights is not.
    config = TrainConfig(
        model="cnn", batch_size=10_000, optimizer="sgd", learning_rate=1e30, clip_norm=0.0
    )
    with pytest.raises(RunError, match=r"not finite in epoch 1 .no epoch is kept.; lower"):
        train(config, cohort, split, run=Run(tmp_path / "run"), device_config=compute)


@pytest.mark.parametrize(("model", "input_size"), [("cnn", 3), ("resnet18", 32)])
def test_images_too_small_for_the_network_are_refused(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path, model: str, input_size: int
):
    config = TrainConfig(model=model, input_size=input_size, weights="none")
    with pytest.raises(CheckpointError, match=f"cannot work on images of {input_size} px"):
        train(config, cohort, split, run=Run(tmp_path / "run"), device_config=compute)
    assert not (tmp_path / "run").exists()


def test_parts_are_forgotten_where_memory_did_not_run_out(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "run")
    config = replace(CONFIG, epochs=1)
    train(config, cohort, split, run=run, device_config=compute, micro_batch=5)
    assert torch.load(run.last, weights_only=True)["micro_batch"] is None


def test_the_same_weights_at_another_path_are_the_same_training(
    cohort: Pack, split: Split, trained: Checkpoint, tmp_path: Path
):
    copy = tmp_path / "copy.pt"
    copy.write_bytes(trained.source.read_bytes())
    one, other = (
        resolved_config(replace(CONFIG, weights=str(path)), cohort, split)
        for path in (trained.source, copy)
    )
    assert one == other


def test_memory_that_runs_out_elsewhere_is_one_line(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("made")

    monkeypatch.setattr("wsi_idc.training.validation.predict_logits", full)
    with pytest.raises(RunError, match=r"out of memory on cpu; give --micro-batch 8"):
        train(CONFIG, cohort, split, run=Run(tmp_path / "run"), device_config=compute)


def test_another_threshold_needs_no_other_training(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "run")
    first = train(CONFIG, cohort, split, run=run, device_config=compute)
    wanted = replace(CONFIG, target_sensitivity=0.99)
    assert resolved_config(wanted, cohort, split) == resolved_config(CONFIG, cohort, split)
    second = train(wanted, cohort, split, run=run, device_config=compute)
    assert second.threshold < first.threshold
    assert second.metrics["val"]["sensitivity"] >= 0.99
    assert second.metrics["epoch"] == first.metrics["epoch"]
    assert second.temperature == pytest.approx(first.temperature, rel=1e-4)
    for name, value in first.state.items():
        assert torch.equal(second.state[name], value)
    assert run.read()["best"] == second.metrics
    unchanged = run.best.stat().st_mtime_ns
    third = train(wanted, cohort, split, run=run, device_config=compute)
    assert third.fingerprint == second.fingerprint
    assert run.best.stat().st_mtime_ns == unchanged


def test_a_checkpoint_of_before_smoothing_gets_it(
    cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path
):
    run = Run(tmp_path / "run")
    first = train(CONFIG, cohort, split, run=run, device_config=compute)
    save_checkpoint(run.best, replace(first, smoothing=None))
    again = train(CONFIG, cohort, split, run=run, device_config=compute)
    assert again.smoothing is not None
    assert again.metrics["val"]["ece_uncalibrated"] is not None


def test_patients_behind_the_given_weights_are_never_unseen(
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    first = train(CONFIG, cohort, split, run=Run(tmp_path / "a"), device_config=compute)
    # Another split, in which train and test patients have changed places.
    swapped = {"train": "test", "test": "train", "val": "val"}
    other = replace(split, roles={p: swapped[role] for p, role in split.roles.items()})
    assert first.source is not None
    begun = replace(CONFIG, weights=str(first.source))
    with caplog.at_level(logging.WARNING, logger="wsi_idc"):
        second = train(begun, cohort, other, run=Run(tmp_path / "b"), device_config=compute)
    assert "was trained on" in caplog.text
    assert set(second.inherited) == first.patients("train")
    assert second.patients("train") == first.patients("train") | set(other.patients("train"))
    method = Predictor((second,))
    with pytest.raises(DataError, match="was trained on"):
        choose_patients(method, cohort, "test")
    unlike = next(patient for patient in second.inherited if other.roles[patient] == "test")
    builder = MapBuilder(method, compute, tmp_path / "maps", cam=None, with_image=False)
    builder.build(PackSource(cohort, [unlike]))
    assert read_map(tmp_path / "maps" / f"{unlike}.h5").model["role_of_patient"] == "train"
    # And so for what begins with that one.
    third = replace(CONFIG, weights=str(second.source))
    last = train(third, cohort, split, run=Run(tmp_path / "c"), device_config=compute)
    assert set(last.inherited) == second.patients("train")


@pytest.fixture
def halfway(cohort: Pack, split: Split, compute: DeviceConfig, tmp_path: Path) -> Run:
    """Return a training that was stopped after its first epoch."""
    run = Run(tmp_path / "halfway")

    def leave(record: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, cohort, split, run=run, device_config=compute, on_epoch=leave)
    return run


def _state_of(content: dict, number: int = 0) -> dict:
    return content["optimizer"]["state"][number]


@pytest.mark.parametrize(
    "forge",
    [
        lambda content: content["place"].update(epoch=-1),
        lambda content: content["place"]["history"].clear(),
        lambda content: content["optimizer"]["param_groups"].pop(),
        lambda content: _state_of(content).update(exp_avg=torch.zeros(3)),
        lambda content: content["network"].popitem(),
        lambda content: content.pop("average"),
        lambda content: content.update(place=[]),
    ],
)
def test_a_forged_state_is_one_line(
    halfway: Run,
    cohort: Pack,
    split: Split,
    compute: DeviceConfig,
    forge: Callable[[dict], object],
):
    content = torch.load(halfway.last, weights_only=True)
    forge(content)
    torch.save(content, halfway.last)
    with pytest.raises(RunError, match="the state does not fit this run") as caught:
        train(CONFIG, cohort, split, run=halfway, device_config=compute)
    assert "\n" not in str(caught.value)
