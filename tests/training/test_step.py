import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.conftest import CONFIG
from wsi_idc.core.errors import RunError
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.training.state import Training
from wsi_idc.training.step import prepare_model
from wsi_idc.training.train import run_steps


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in training.classifier.network.state_dict().items()}


def trained_by_steps(training: Training) -> dict[str, torch.Tensor]:
    """Return the weights after one epoch."""
    assert list(run_steps(training)) == [8] * 4
    return weights(training)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function after which a train step fails with more patches than given."""
    forward = PatchClassifier.forward

    def limit(num_patches: int) -> None:
        def limited(self: PatchClassifier, patches: torch.Tensor) -> torch.Tensor:
            if self.training and len(patches) > num_patches:
                raise torch.OutOfMemoryError("made")
            return forward(self, patches)

        monkeypatch.setattr(PatchClassifier, "forward", limited)

    return limit


def test_a_batch_in_parts_equals_a_batch(build: Any, monkeypatch: pytest.MonkeyPatch):
    # Without batch norm and dropout the gradients of the parts add up.
    monkeypatch.setattr("wsi_idc.models.cnn.DROPOUT", 0.0)
    config = replace(
        CONFIG,
        model="cnn",
        optimizer="sgd",
        mixup=0.4,
        cutmix=0.5,
        cell_loss=0.5,
        label_smoothing=0.1,
    )
    complete = trained_by_steps(build(config))
    in_parts = trained_by_steps(build(config, micro_batch=3))
    for name, value in complete.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-4, atol=1e-5)


def test_the_cell_loss_needs_a_linear_head_and_changes_the_weights(build: Any):
    with pytest.raises(
        RunError, match="squeezenet1_1 has other layers there; leave out --cell-loss"
    ):
        build(replace(CONFIG, model="squeezenet1_1", cell_loss=0.5))
    plain = trained_by_steps(build(CONFIG))
    with_cells = trained_by_steps(build(replace(CONFIG, cell_loss=0.5)))
    assert any((with_cells[name] != value).any() for name, value in plain.items())


def test_too_little_memory_reduces_the_parts(
    build: Any, small_memory: Any, caplog: pytest.LogCaptureFixture
):
    expected = trained_by_steps(build(CONFIG, micro_batch=2))
    training = build(CONFIG)
    small_memory(2)
    with caplog.at_level(logging.WARNING, logger="wsi_idc"):
        actual = trained_by_steps(training)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert (training.micro_batch, training.micro_batch_reduced) == (2, True)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory on cpu: computing 4 patches at once from now on, still 8 per step",
        "out of memory on cpu: computing 2 patches at once from now on, still 8 per step",
    ]


def test_a_device_too_small_for_one_patch_is_an_error(build: Any, small_memory: Any):
    training = build(CONFIG)
    small_memory(0)
    with pytest.raises(RunError, match="out of memory on cpu with 1 patches at once"):
        next(run_steps(training))


def test_a_frozen_backbone_does_not_change(build: Any):
    training = build(replace(CONFIG, freeze=1))
    start = weights(training)
    end = trained_by_steps(training)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    training.state.epoch = 1
    prepare_model(training)
    assert all(parameter.requires_grad for parameter in training.classifier.parameters())
    assert all(module.training for module in training.classifier.modules())


def test_the_gradient_is_clipped_only_if_configured(build: Any):
    norms = {}
    for limit in (0.0, 1e-3):
        training = build(replace(CONFIG, clip_norm=limit))
        next(run_steps(training))
        gradients = [p.grad for p in training.classifier.parameters() if p.grad is not None]
        norms[limit] = float(torch.nn.utils.get_total_norm(gradients))
    assert norms[0.0] > 0.01
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
