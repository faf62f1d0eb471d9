import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.conftest import CONFIG
from wsi_idc.core.errors import CheckpointError, RunError, WsiIdcError
from wsi_idc.training.state import resume, save_state, to_checkpoint
from wsi_idc.training.train import run_steps


def tensors(training: Any) -> list[torch.Tensor]:
    """Return all tensors of a training: weights, running average and optimizer state."""
    states = training.optimizer.state_dict()["state"]
    return [
        *training.classifier.state_dict().values(),
        *training.average.state_dict().values(),
        *(value for state in states.values() for value in state.values()),
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_resumed_training_continues_bit_by_bit(build: Any, optimizer: str):
    config = replace(CONFIG, optimizer=optimizer)
    first = build(config)
    steps = run_steps(first)
    next(steps), next(steps)
    save_state(first)
    second = build(config)
    resume(second)
    assert second.state == first.state
    list(steps), list(run_steps(second))
    assert second.state.step == 4
    assert float(second.pending_loss) != 0
    pairs = zip(tensors(first), tensors(second), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("is_reduced", "expected"), [(True, 2), (False, 8)])
def test_only_a_micro_batch_that_the_memory_limits_is_kept(
    build: Any, is_reduced: bool, expected: int
):
    training = build(CONFIG, micro_batch=2)
    training.micro_batch_reduced = is_reduced
    save_state(training)
    resumed = build(CONFIG)
    resume(resumed)
    assert (resumed.micro_batch, resumed.micro_batch_reduced) == (expected, is_reduced)


def test_a_frozen_random_network_and_another_device_are_worth_a_warning(
    build: Any, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="wsi_idc"):
        training = build(replace(CONFIG, freeze=1))
        save_state(training)
        content = torch.load(training.run.last, weights_only=True)
        torch.save(content | {"compute": "cuda (a GPU), bf16"}, training.run.last)
        resume(training)
    assert "--freeze 1 without initial weights" in caplog.text
    assert "started on cuda (a GPU), bf16 and resumes on cpu" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["place"].update(epoch=3),
        lambda content: content["place"].update(epoch=1, history=[]),
        lambda content: content.update(place=[]),
        lambda content: content["optimizer"]["param_groups"].pop(),
        lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
        lambda content: content["network"].popitem(),
        lambda content: content["network"].update(other=torch.zeros(1)),
        lambda content: content.pop("average"),
        lambda content: content.update(format="wsi-idc-checkpoint"),
    ],
)
def test_a_state_of_another_training_is_one_line(build: Any, damage: Callable[[dict], object]):
    training = build(CONFIG)
    next(run_steps(training))
    save_state(training)
    content = torch.load(training.run.last, weights_only=True)
    damage(content)
    torch.save(content, training.run.last)
    with pytest.raises(WsiIdcError, match=r"last\.pt: (the state does not fit|not a)") as caught:
        resume(build(CONFIG))
    assert "\n" not in str(caught.value)


def test_states_of_other_models_and_damaged_files_are_one_line(build: Any):
    other = build(replace(CONFIG, model="cnn"))
    save_state(other)
    with pytest.raises(RunError, match=r"does not fit this run .RuntimeError.; delete the file"):
        resume(build(CONFIG))
    other.run.last.write_bytes(other.run.last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.pt: not a readable"):
        resume(other)


def test_a_checkpoint_holds_the_running_average_and_is_not_calibrated(build: Any):
    training = build(CONFIG)
    list(run_steps(training))
    checkpoint = to_checkpoint(training)
    average = training.average.module.network.state_dict()
    assert all(torch.equal(checkpoint.state[name], value) for name, value in average.items())
    assert (checkpoint.temperature, checkpoint.threshold, checkpoint.metrics) == (1.0, 0.5, {})
    assert checkpoint.split == training.split.roles
