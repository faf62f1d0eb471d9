"""Optimiser, learning rate and running average of the weights, as a configuration asks."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.training.config import TrainConfig

LAST_LR_FACTOR = 0.01
PLATEAU_FACTOR = 0.1
MOMENTUM = 0.9


def make_optimizer(classifier: PatchClassifier, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser, its groups by depth; biases and norms are not decayed."""
    groups = []
    for depth, parameters in enumerate(reversed(_stages(classifier))):
        rate = config.learning_rate * config.layer_decay**depth
        for is_weight, decay in ((True, config.weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == is_weight]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    return kind(groups, lr=config.learning_rate)


def _stages(classifier: PatchClassifier) -> list[list[nn.Parameter]]:
    """Return the parameters from the input to the head, those of a stage together.

    A stage is a child of the network, or of a child that is a plain sequence.
    """
    modules: list[nn.Module] = []
    for child in classifier.network.children():
        modules += child.children() if isinstance(child, nn.Sequential) else [child]
    stages = [list(module.parameters()) for module in modules]
    known = {id(parameter) for stage in stages for parameter in stage}
    own = [p for p in classifier.network.parameters() if id(p) not in known]
    return [stage for stage in (own, *stages) if stage]


def lr_factor(config: TrainConfig, step: int, *, total: int) -> float:
    """Return the share of the peak learning rate at ``step`` of ``total``, before any plateau."""
    warm_up = round(config.warm_up * total)
    if step < warm_up:
        return (step + 1) / warm_up
    if config.schedule != "cosine":
        return 1.0
    done = (step - warm_up) / max(1, total - warm_up)
    return LAST_LR_FACTOR + (1 - LAST_LR_FACTOR) * (1 + math.cos(math.pi * done)) / 2


def plateau_factor(config: TrainConfig, values: list[float]) -> float:
    """Return the share of the learning rate that is left after the epochs' monitored ``values``.

    With the plateau schedule it falls to a tenth whenever half the patience has passed without a
    better value.
    """
    share, best, waited = 1.0, -math.inf, 0
    for value in values:
        waited = 0 if value > best else waited + 1
        best = max(best, value)
        if waited == max(1, config.patience // 2):
            share, waited = share * PLATEAU_FACTOR, 0
    return share if config.schedule == "plateau" else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set each group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def running_average(network: nn.Module, decay: float) -> AveragedModel:
    """Return a running average of a network's weights and buffers; ``update_parameters`` adds."""

    @torch.no_grad()
    def add(average: list[Tensor], now: list[Tensor], _: Tensor) -> None:
        # Young, it looks back less far: else the random start would stay in it for long. The
        # count is read where it lies, on the CPU: nothing waits for the device.
        num = int(averaged.n_averaged)
        share = 1 - min(decay, (1 + num) / (10 + num))
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, now, share)
        else:
            torch._foreach_copy_(average, now)

    averaged = AveragedModel(network, multi_avg_fn=add, use_buffers=True)  # type: ignore[arg-type]
    return averaged
