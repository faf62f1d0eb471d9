import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Loss, Targets, inverse_frequency
from wsi_idc.training.optimizer import build_average, build_optimizer, lr_factor, plateau_factor

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.5, 0.5], [3.0, 2.0]])
LABEL = torch.tensor([0, 1, 1, 0, 0])
WEIGHT = torch.tensor([0.7, 1.75])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_weighted_mean_of_torch(smoothing: float):
    loss, targets = Loss(WEIGHT, label_smoothing=smoothing), Targets(LABEL)
    expected = F.cross_entropy(LOGITS, LABEL, weight=WEIGHT, label_smoothing=smoothing)
    torch.testing.assert_close(loss.loss_sum(LOGITS, targets) / loss.normalizer(targets), expected)
    assert loss.loss_sum(LOGITS.bfloat16(), targets).dtype == torch.float32


def test_the_losses_of_parts_add_up():
    loss, targets = Loss(WEIGHT, 0.1, 2.0), Targets(LABEL)
    parts = [slice(0, 2), slice(2, 5)]
    summed = sum(loss.loss_sum(LOGITS[part], targets.take(part)) for part in parts)
    torch.testing.assert_close(summed, loss.loss_sum(LOGITS, targets))


def test_focal_loss_of_one_patch():
    loss = Loss(torch.ones(2), focal_gamma=2.0)
    probability = 1 / (1 + math.exp(2))  # of label 1 at logits (1, -1)
    expected = -((1 - probability) ** 2) * math.log(probability)
    actual = loss.loss_sum(torch.tensor([[1.0, -1.0]]), Targets(torch.tensor([1])))
    assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_mixed_targets_weight_both_losses():
    lam = torch.tensor([0.5, 0.75, 1.0, 0.6, 0.9])
    label_b = LABEL.flip(0)
    loss = Loss(WEIGHT)
    losses, losses_b = (loss._losses(LOGITS, label) for label in (LABEL, label_b))
    targets = Targets(LABEL, label_b, lam)
    expected = (lam * losses + (1 - lam) * losses_b).sum()
    torch.testing.assert_close(loss.loss_sum(LOGITS, targets), expected)
    expected = (lam * WEIGHT[LABEL] + (1 - lam) * WEIGHT[label_b]).sum()
    torch.testing.assert_close(loss.normalizer(targets), expected)
    parts = [loss.normalizer(targets.take(part)) for part in (slice(0, 3), slice(3, 5))]
    torch.testing.assert_close(sum(parts), expected)


def test_class_weights_balance_the_classes():
    assert inverse_frequency(np.array([0, 0, 0, 1])).tolist() == [4 / 6, 2.0]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_of_a_certain_patch_has_a_gradient(gamma: float):
    logits = torch.tensor([[40.0, -40.0]], requires_grad=True)
    Loss(torch.ones(2), focal_gamma=gamma).loss_sum(logits, Targets(torch.tensor([0]))).backward()
    assert torch.isfinite(logits.grad).all()


def classifier(name: str = "cnn-bn") -> PatchClassifier:
    arch = architecture(name)
    return PatchClassifier(arch, arch.build(2), input_px=None, mean=(0.5,) * 3, std=(0.2,) * 3)


def test_the_learning_rate_warms_up_and_falls():
    factors = [lr_factor(TrainConfig(), step, total=100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors) == 1.0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0.01, abs=1e-3)
    assert lr_factor(TrainConfig(warm_up=0.0), 0, total=100) == 1.0


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_other_schedules_keep_the_largest_rate(schedule: str):
    config = TrainConfig(schedule=schedule, warm_up=0.02)
    assert [lr_factor(config, step, total=100) for step in (0, 1, 2, 99)] == [0.5, 1, 1, 1]


def test_each_plateau_of_half_the_patience_divides_the_rate_by_ten():
    config = TrainConfig(schedule="plateau", patience=4)
    values = [0.5, 0.6, 0.6, 0.5, 0.7, 0.1, 0.2, 0.3, 0.4]
    factors = [plateau_factor(config, values[:num]) for num in range(len(values) + 1)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert plateau_factor(TrainConfig(), values) == 1.0


@pytest.mark.parametrize("decay", [0.3, 0.0])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_weight_is_in_one_group_and_only_weights_decay(name: str, decay: float):
    network = classifier()
    config = TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=decay)
    groups = build_optimizer(network, config).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(network.parameters()))
    for group in groups:
        assert group["lr"] == 0.1
        for parameter in group["params"]:
            assert group["weight_decay"] == (decay if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("name", ["cnn-bn", "resnet18", "efficientnet-b0"])
def test_layer_decay_reduces_the_rate_with_the_distance_from_the_head(name: str):
    network = classifier(name)
    config = TrainConfig(learning_rate=1.0, layer_decay=0.5)
    groups = build_optimizer(network, config).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    rates = [rate[id(parameter)] for parameter in network.parameters()]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert rates[0] < 0.1


def test_the_running_average_has_a_short_horizon_at_first():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = build_average(layer, 0.9)
    expected = None
    for num, value in enumerate([1.0, 2.0, 4.0, 3.0] + [5.0] * 200):
        torch.nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
        weight = 1 - min(0.9, (1 + num) / (10 + num))
        expected = value if expected is None else expected + weight * (value - expected)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_running_average_includes_the_statistics_of_batch_norm():
    norm = torch.nn.BatchNorm1d(1)
    average = build_average(norm, 0.9)
    for mean in (1.0, 2.0):
        norm.running_mean.fill_(mean)
        norm.num_batches_tracked += 1
        average.update_parameters(norm)
    assert float(average.module.running_mean) == pytest.approx(1 + 9 / 11)
    assert int(average.module.num_batches_tracked) == 2
