import pytest
import torch

from tests.classifiers import make_classifier
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.optimizer import build_average, build_optimizer, lr_factor, plateau_factor


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
    network = make_classifier("cnn-bn")
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
    network = make_classifier(name)
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
