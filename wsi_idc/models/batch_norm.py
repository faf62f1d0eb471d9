"""Batch norms that were folded into their convolutions, and how to unfold them."""

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wsi_idc.models.classifier import PatchClassifier

logger = logging.getLogger(__name__)
# What fx raises at a network whose way depends on values, or that is not Python all through.
_UNTRACEABLE = (TypeError, ValueError, RuntimeError, NameError, AttributeError, NotImplementedError)


class _Tracer(fx.Tracer):
    """A tracer that looks into no convolution, of whatever kind."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one step of the graph."""
        leaf = isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)
        return bool(leaf)


def fuse_batch_norm(classifier: PatchClassifier, *, keep: str | None = None) -> PatchClassifier:
    """Return a copy in eval mode whose batch norms are folded where that is possible.

    All modules keep their names, and give the same as before: but for the folded convolutions,
    which give what their batch norms gave. The copy cannot be trained.

    Args:
        classifier: Is left as it is, on its device. A network that cannot be traced is copied only.
        keep: Name of a module whose output must stay what it is.
    """
    result = copy.deepcopy(classifier).eval()
    network = result.network
    for conv_name, norm_name in list(_pairs(network)):
        if conv_name == keep:
            continue
        _fold(network.get_submodule(conv_name), network.get_submodule(norm_name))
        parent, _, name = norm_name.rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
    return result.requires_grad_(False)


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield names of a convolution and of the batch norm that alone takes what it gives."""
    try:
        graph = _Tracer().trace(network)
    except _UNTRACEABLE as error:
        logger.debug("batch norms are not folded: %s", error)
        return
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or {node.op, before.op} != {"call_module"}:
            continue
        conv_name, norm_name = str(before.target), str(node.target)
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        is_pair = isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d
        is_alone = len(before.users) == 1 and calls[conv_name] == calls[norm_name] == 1
        if is_pair and is_alone and norm.running_mean is not None:
            yield conv_name, norm_name


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


_BATCH_SIZE = 32
# Who folds may make up for eps, in the variance or in the weight.
_NEAR_ONE = 1e-3


def has_fused_batch_norm(network: nn.Module) -> bool:
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
