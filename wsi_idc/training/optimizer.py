"""Optimizer, learning-rate schedule and running average of the weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.feature_map import MappedNetwork
from wsi_idc.training.config import TrainConfig

LAST_LR_FACTOR = 0.01


def build_optimizer(classifier: PatchClassifier, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer; each stage of the network has its own learning rate.

    The biases and the parameters of normalization layers have no weight decay.
    """
    groups = []
    for depth, parameters in enumerate(reversed(_stages(classifier))):
        rate = config.learning_rate * config.layer_decay**depth
        for is_weight, decay in ((True, config.weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == is_weight]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
    optimizer_class = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    return optimizer_class(groups, lr=config.learning_rate)


def _stages(classifier: PatchClassifier) -> list[list[nn.Parameter]]:
    """Return the parameters of each stage, from the input to the head."""
    # A stage is a child of the network, or a child of an ``nn.Sequential`` in the network.
    modules: list[nn.Module] = []
    network = classifier.network
    for child in (network.encoder if isinstance(network, MappedNetwork) else network).children():
        modules += child.children() if isinstance(child, nn.Sequential) else [child]
    stages = [list(module.parameters()) for module in modules]
    in_stages = {id(parameter) for stage in stages for parameter in stage}
    others = [p for p in classifier.network.parameters() if id(p) not in in_stages]
    return [stage for stage in (others, *stages) if stage]


def lr_factor(config: TrainConfig, step: int, *, total: int) -> float:
    """Return the learning rate at ``step`` of ``total`` steps, divided by the largest rate."""
    warm_up = round(config.warm_up * total)
    if step < warm_up:
        return (step + 1) / warm_up
    if config.schedule != "cosine":
        return 1.0
    done = (step - warm_up) / max(1, total - warm_up)
    return LAST_LR_FACTOR + (1 - LAST_LR_FACTOR) * (1 + math.cos(math.pi * done)) / 2


def plateau_factor(config: TrainConfig, values: list[float]) -> float:
    """Return the factor by which the schedule "plateau" multiplies the learning rate.

    The factor is 1 at first. After each ``patience // 2`` epochs (at least 1) without a better
    value, the factor is multiplied by 0.1. For other schedules, the factor is always 1.

    Args:
        config: Settings of the training.
        values: Monitored value of each finished epoch; a larger value is better.
    """
    factor, best, num_waited = 1.0, -math.inf, 0
    for value in values:
        num_waited = 0 if value > best else num_waited + 1
        best = max(best, value)
        if num_waited == max(1, config.patience // 2):
            factor, num_waited = factor * 0.1, 0
    return factor if config.schedule == "plateau" else 1.0


def build_average(network: nn.Module, decay: float) -> AveragedModel:
    """Build a running average of weights and buffers; its ``update_parameters`` adds new values."""

    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        # In the first steps the decay is smaller: otherwise the initial weights would have too
        # much influence. The counter is on the CPU, so reading it does not wait for the device.
        num_updates = int(averaged.n_averaged)
        weight = 1 - min(decay, (1 + num_updates) / (10 + num_updates))
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, weight)
        else:
            torch._foreach_copy_(average, current)

    averaged = AveragedModel(network, multi_avg_fn=update, use_buffers=True)  # type: ignore[arg-type]
    return averaged
