"""Find a network's last feature map and its head by tracing: the check of the registry's table."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsi_idc.models.registry import build_on_meta

_NUM_CLASSES = 997  # the number of channels of no network
_INPUT_PX = 224
_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_NO_CHANGE = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)

Call = tuple[str, nn.Module, Tensor]  # name, module, output


class Layers(NamedTuple):
    """The last feature map, the head, and whether the logits are the head of the map's mean."""

    cam_layer: str
    head: str
    closed_form: bool


def find_cam_and_head(build: Callable[[int], nn.Module]) -> Layers | None:
    """Run a network on the meta device once; None if no convolutional feature map is at its end."""
    network = build_on_meta(build, _NUM_CLASSES).to("meta").eval()
    calls = _trace(network)
    head_at = max(number for number, (_, module, _) in enumerate(calls) if _is_head(module))
    map_at = _last_map(calls[:head_at])
    if map_at is None or any(output.ndim == 3 for _, _, output in calls[map_at:head_at]):
        return None  # tokens
    cam_layer, _, features = calls[map_at]
    head, layer, _ = calls[head_at]
    # Other parameters behind the map, such as a norm or a hidden layer, change the map's weights.
    is_direct = all(
        module is layer or not list(module.parameters(recurse=False))
        for _, module, _ in calls[map_at + 1 :]
    )
    closed_form = (
        is_direct
        and isinstance(layer, nn.Linear)
        and layer.in_features == features.shape[1]
        and _is_head_of_mean(network, cam_layer, layer, features.shape)
    )
    return Layers(cam_layer, head, closed_form)


def _trace(network: nn.Module) -> list[Call]:
    """Return every call of a module in a forward pass, in order of completion."""
    calls: list[Call] = []

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append((name, module, output))

    hooks = [
        module.register_forward_hook(functools.partial(record, name))
        for name, module in network.named_modules()
    ]
    with torch.no_grad():
        network(torch.empty(1, 3, _INPUT_PX, _INPUT_PX, device="meta"))
    for hook in hooks:
        hook.remove()
    return calls


def _is_head(module: nn.Module) -> bool:
    size = getattr(module, "out_features", getattr(module, "out_channels", None))
    return isinstance(module, nn.Linear | nn.Conv2d) and size == _NUM_CLASSES


def _last_map(calls: list[Call]) -> int | None:
    """Return the index of the last map (N, C, h, w) of more than one cell, before any pooling."""
    # The output of a block that ends in a pooling is pooled: the finer map is before it.
    pooled = {id(output) for _, module, output in calls if isinstance(module, _POOLING)}
    for number, (_, module, output) in reversed(list(enumerate(calls))):
        is_map = output.ndim == 4 and output.shape[-2:].numel() > 1
        if is_map and id(output) not in pooled and not isinstance(module, _NO_CHANGE):
            return number
    return None


def _is_head_of_mean(
    network: nn.Module, cam_layer: str, head: nn.Linear, shape: torch.Size
) -> bool:
    """Put a random map into the network and compare its logits with the head of the map's mean."""
    torch.manual_seed(0)
    features = torch.randn(2, *shape[1:])
    head.to_empty(device="cpu")
    with torch.no_grad():
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
        network.get_submodule(cam_layer).register_forward_hook(lambda *_: features)
        logits = network(torch.empty(2, 3, _INPUT_PX, _INPUT_PX, device="meta"))
        # DenseNet's last ReLU works in place: by now it is part of the map, as in a CAM.
        return torch.allclose(logits, head(features.mean(dim=(2, 3))), rtol=1e-4, atol=1e-4)
