"""Batch norms that were folded into their convolutions, and how to unfold them."""

from collections import defaultdict
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from wsi_idc.models.classifier import PatchClassifier

_BATCH_SIZE = 32
# Who folds may make up for eps, in the variance or in the weight.
_NEAR_ONE = 1e-3


def is_folded(network: nn.Module) -> bool:
    """Return whether all batch norms of ``network`` do nothing but add their bias.

    So they stand in weights made for inference, where scale and mean went into the convolutions.
    A network before any training is not meant: it has no bias to add.
    """
    norms = _norms(network)
    return all(map(_adds_bias_alone, norms)) and any(norm.bias.any() for norm in norms)


def _adds_bias_alone(norm: nn.BatchNorm2d) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or not norm.affine:
        return False
    ones = torch.ones_like(var)
    return (
        not mean.any()
        and torch.allclose(var, ones, atol=_NEAR_ONE)
        and torch.allclose(norm.weight, ones, atol=_NEAR_ONE)
    )


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def unfold_batch_norm(classifier: PatchClassifier, patches: Tensor) -> None:
    """Give each batch norm the statistics of its input and the scale that undoes them.

    In eval mode the network computes what it did; in train mode it does so too, up to the
    difference between a batch and these patches, where folded ones would normalise the
    pretrained scale away.

    Args:
        classifier: Its modes are left as they are.
        patches: Shape (N, H, W, 3), uint8; a few hundred of those to train on.
    """
    statistics = _input_statistics(classifier, patches)
    for norm, (mean, var) in statistics.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # All in double: a channel that hardly varies has a small scale and a large shift.
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - scale * norm.running_mean.double()
        norm.weight.copy_(scale * (var + norm.eps).sqrt())  # eps keeps it from 0 where var is 0
        norm.bias.copy_(shift + scale * mean)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


def _input_statistics(
    classifier: PatchClassifier, patches: Tensor
) -> dict[nn.BatchNorm2d, tuple[Tensor, Tensor]]:
    """Return mean and variance (C,), float64, of each batch norm's input, in eval mode."""
    # Of each batch: number of values, mean and mean square.
    moments: dict[nn.BatchNorm2d, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)

    def note(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        count, mean = inputs[0][:, 0].numel(), mean.double()
        moments[norm].append((count, mean, var.double() + mean.square()))

    with ExitStack() as stack:
        for module in classifier.modules():
            stack.callback(setattr, module, "training", module.training)
        for norm in _norms(classifier.network):
            stack.callback(norm.register_forward_pre_hook(note).remove)
        classifier.eval()
        for batch in patches.split(_BATCH_SIZE):
            classifier(batch.to(classifier.mean.device))
    return {norm: _mean_and_var(batches) for norm, batches in moments.items()}


def _mean_and_var(batches: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    total = sum(count for count, _, _ in batches)
    mean = torch.stack([count / total * mean for count, mean, _ in batches]).sum(0)
    square = torch.stack([count / total * square for count, _, square in batches]).sum(0)
    return mean, (square - mean.square()).clamp(min=0)
