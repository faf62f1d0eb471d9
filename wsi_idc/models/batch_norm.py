"""Fusion of batch norms into convolutions, and the inverse operation for further training."""

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsi_idc.models.classifier import PatchClassifier, eval_mode

logger = logging.getLogger(__name__)
# Errors that torch.fx raises for a network that it cannot trace.
_UNTRACEABLE = (TypeError, ValueError, RuntimeError, NameError, AttributeError, NotImplementedError)
# Modules that torch.fx does not look into: their operations depend on the mode of torch.
OPAQUE = (nn.Conv2d, nn.MaxPool2d)
_BATCH_SIZE = 32
# Because of ``eps``, the variance or weight of a fused batch norm differs from 1 by up to this.
_NEAR_ONE = 1e-3


def fuse_batch_norm(classifier: PatchClassifier, *, keep: str | None = None) -> PatchClassifier:
    """Copy a classifier, set the copy to eval mode, and fuse its batch norms into convolutions.

    All modules keep their names and their outputs, with one exception: the output of a fused
    convolution is the output of its batch norm. The copy cannot be trained.

    Args:
        classifier: Classifier to copy. If its network cannot be traced, no batch norm is fused.
        keep: Name of a module whose output must not change; this module stays separate.
    """
    fused = copy.deepcopy(classifier).eval()
    network = fused.network
    for conv_name, norm_name in list(_fusible_pairs(network)):
        if conv_name != keep:
            pair: Any = network.get_submodule(conv_name), network.get_submodule(norm_name)
            network.set_submodule(conv_name, fuse_conv_bn_eval(*pair))
            network.set_submodule(norm_name, nn.Identity())
    return fused.requires_grad_(False)


def _fusible_pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """For each pair that can be fused, yield the names of the convolution and the batch norm."""
    try:
        graph = _Tracer().trace(network)
    except _UNTRACEABLE as error:
        logger.debug("batch norms are not fused: %s", error)
        return
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or {node.op, before.op} != {"call_module"}:
            continue
        conv_name, norm_name = str(before.target), str(node.target)
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        is_pair = isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d
        is_only_user = len(before.users) == calls[conv_name] == calls[norm_name] == 1
        if is_pair and is_only_user and norm.running_mean is not None:
            yield conv_name, norm_name


class _Tracer(fx.Tracer):
    """Tracer that records each convolution or pooling without the operations inside."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, OPAQUE) or super().is_leaf_module(module, name)


def has_fused_batch_norm(network: nn.Module) -> bool:
    """Return whether the batch norms of ``network`` are already fused into its convolutions.

    After a fusion, the convolution contains the scale and the mean of the batch norm, and the
    batch norm only adds a bias. If all these biases are 0, the batch norms are untrained, and this
    function returns False.
    """
    norms = _batch_norms(network)
    return all(map(_only_adds_bias, norms)) and any(norm.bias.any() for norm in norms)


def _only_adds_bias(norm: nn.BatchNorm2d) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or not norm.affine or mean.any():
        return False
    return all(torch.allclose(x, torch.ones_like(x), atol=_NEAR_ONE) for x in (var, norm.weight))


def _batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def unfold_batch_norm(classifier: PatchClassifier, patches: Tensor) -> None:
    """Undo the fusion of batch norms, so that the network can be trained.

    Each batch norm gets the mean and variance of its input, and a scale and bias that compensate
    for this mean and variance. In eval mode, the outputs of the network do not change. In train
    mode, the outputs change if the statistics of a batch differ from those of ``patches``.

    Args:
        classifier: Classifier to change. Its mode (train or eval) is restored afterwards.
        patches: A few hundred train patches, shape (N, H, W, 3), uint8.
    """
    # For each batch norm, an array (3, C): count, sum and sum of squares of the cells by channel.
    # In float64, the difference of two large sums still gives an exact small variance.
    sums: dict[Any, Any] = defaultdict(float)

    def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        var, mean = (values.double() for values in moments)
        terms = [torch.ones_like(mean), mean, var + mean.square()]
        sums[norm] += inputs[0][:, 0].numel() * torch.stack(terms)

    with eval_mode(classifier), ExitStack() as hooks:
        for norm in _batch_norms(classifier.network):
            hooks.enter_context(norm.register_forward_pre_hook(record))
        for batch in patches.split(_BATCH_SIZE):
            classifier(batch.to(classifier.mean.device))
    for norm, (count, values, squares) in sums.items():
        mean = values / count
        var = (squares / count - mean.square()).clamp(min=0)
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - scale * norm.running_mean.double()
        norm.weight.copy_(scale * (var + norm.eps).sqrt())  # eps: the weight must not become 0
        norm.bias.copy_(shift + scale * mean)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
