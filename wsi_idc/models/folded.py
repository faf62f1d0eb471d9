"""A classifier made ready for inference: batch norms folded into the convolutions before them.

In eval mode a batch norm is a scale and a shift of each channel, and so is what a convolution's
weights and bias can take up. One pass over each map in memory is saved; values change in the last
digits alone.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
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


def folded(classifier: PatchClassifier, *, keep: str | None = None) -> PatchClassifier:
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
