"""Where in a network its head and its last convolutional feature map are."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsi_idc.core.errors import CheckpointError

# A number of classes that is no network's number of channels.
_NUM_CLASSES = 997
# Whatever size its weights were trained at, every network takes this one.
_INPUT_PX = 224

_POOLING = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
)
_PASSING = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Layers:
    """What a CAM needs to know of a network.

    Attributes:
        cam_layer: Name of the module whose output is the last convolutional feature map.
        head: Name of the layer that gives the class scores.
        closed_form: Whether the logits are the head of that map's mean over its cells.
    """

    cam_layer: str
    head: str
    closed_form: bool


class _MetaInit(TorchFunctionMode):
    """Makes parameters on the meta device, where they take neither memory nor time.

    ``torch.device("meta")`` would take along what constructors compute with: a RegNet reads its
    widths from a tensor.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_on_meta(build: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """Return the network with parameters on the meta device: shapes without values.

    No random number is drawn. ``to_empty`` gives it memory and a state dict its values.
    """
    with _MetaInit():
        return build(num_classes)


def find_cam_and_head(name: str, build: Callable[[int], nn.Module]) -> Layers:
    """Run a network without values once and see in which order its layers work.

    Args:
        name: What messages call it.
        build: Number of classes to a fresh network.

    Raises:
        CheckpointError: There is no convolutional feature map at its end.
    """
    network = build_on_meta(build, _NUM_CLASSES).to("meta").eval()
    done = _outputs(network)
    at_head = max(at for at, (_, module, _) in enumerate(done) if _gives_classes(module))
    at_map = _last_map(done[:at_head])
    if at_map is None or any(output.ndim == 3 for _, _, output in done[at_map:at_head]):
        raise CheckpointError(
            f"{name} has no convolutional feature map at its end to take a CAM from (it works on "
            "tokens); choose a convolutional model, such as resnet50 or convnext_tiny"
        )
    cam_layer, _, features = done[at_map]
    head, layer, _ = done[at_head]
    # Any other parameters behind the map, its norm or a hidden layer, bend or rescale it.
    alone = all(
        module is layer or not list(module.parameters(recurse=False))
        for _, module, _ in done[at_map + 1 :]
    )
    closed_form = (
        alone
        and isinstance(layer, nn.Linear)
        and layer.in_features == features.shape[1]
        and _is_head_of_mean(network, cam_layer, layer, features.shape)
    )
    return Layers(cam_layer, head, closed_form)


def feature_map_size(build: Callable[[int], nn.Module], cam_layer: str, *, input_px: int) -> int:
    """Return how many cells the map of ``cam_layer`` has for images of ``input_px`` a side.

    It is 0 where the network does not take images of this size.
    """
    return math.prod(output_shapes(build, input_px=input_px).get(cam_layer, (0,))[-2:])


def output_shapes(
    build: Callable[[int], nn.Module], *, input_px: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each module gives for one image of ``input_px`` a side.

    In order of completion, of its last call where it works several times. There are none where
    the network does not take images of this size.
    """
    network = build_on_meta(build, _NUM_CLASSES).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for name, _, output in _outputs(network, input_px=input_px):
            shapes.pop(name, None)  # for a place behind all before it
            shapes[name] = tuple(output.shape)
    # What layers answer an empty map, and attention one that it cannot divide.
    except (RuntimeError, ValueError, AssertionError):
        return {}
    return shapes


def _outputs(
    network: nn.Module, *, input_px: int = _INPUT_PX
) -> list[tuple[str, nn.Module, Tensor]]:
    """Return name, module and output of every call in a forward pass, in order of completion."""
    done: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # an attention gives a tuple
            done.append((name, module, output))

    hooks = [
        module.register_forward_hook(functools.partial(note, name))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, input_px, input_px, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return done


def _gives_classes(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == _NUM_CLASSES
    return isinstance(module, nn.Conv2d) and module.out_channels == _NUM_CLASSES


def _last_map(done: list[tuple[str, nn.Module, Tensor]]) -> int | None:
    """Return the place of the last output that is a map (N, C, h, w) of more than one cell."""
    # A block that ends with a pooling gives the pooling's output: the finer map is before it.
    pooled = {id(output) for _, module, output in done if isinstance(module, _POOLING)}
    for at in reversed(range(len(done))):
        _, module, output = done[at]
        is_map = output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1
        if is_map and id(output) not in pooled and not isinstance(module, _PASSING):
            return at
    return None


def _is_head_of_mean(
    network: nn.Module, cam_layer: str, head: nn.Linear, shape: torch.Size
) -> bool:
    """Try with random values, in what follows the map alone, whether pooling is all there is."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cpu")

    given = random(2, *shape[1:])
    head.to_empty(device="cpu")
    with torch.no_grad():
        head.weight.copy_(random(*head.weight.shape))
        head.bias.copy_(random(*head.bias.shape))
        layer = network.get_submodule(cam_layer)
        layer.register_forward_hook(lambda module, inputs, output: given)
        logits = network(torch.empty(2, 3, _INPUT_PX, _INPUT_PX, device="meta"))
        # DenseNet's last ReLU works in place: by now it is part of the map, here as in a CAM.
        return torch.allclose(logits, head(given.mean(dim=(2, 3))), rtol=1e-4, atol=1e-4)
