"""Layers of a network for CAMs and novelty, and the sizes of their feature maps."""

import difflib
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.architecture import Architecture, build_empty

# For each VGG network, the index of the last ReLU in ``network.features``.
_VGG = {"11": 19, "11_bn": 27, "13": 23, "13_bn": 33, "16": 29, "16_bn": 42, "19": 35, "19_bn": 51}
# For each family of networks, three fields of ``Architecture``: cam_layer, head and closed_form. A
# family is the start of a model's name in torchvision. If several starts match, the longest one is
# used. "cnn" is the family of this program's own networks.
CAM_LAYERS = {
    "cnn": ("features", "classifier", True),
    "alexnet": ("features.11", "classifier.6", False),
    "convnext": ("features", "classifier.2", False),
    "densenet": ("features", "classifier", True),
    "googlenet": ("inception5b", "fc", True),
    "inception": ("Mixed_7c", "fc", True),
    "maxvit": ("blocks.3", "classifier.5", False),
    "mnasnet": ("layers", "classifier.1", True),
    "mobilenet_v3": ("features", "classifier.3", False),
    "regnet": ("trunk_output", "fc", True),
    "shufflenet": ("conv5", "fc", True),
    "squeezenet": ("features", "classifier.1", False),
    "swin": ("permute", "head", True),
    **dict.fromkeys(("efficientnet", "mobilenet_v2"), ("features", "classifier.1", True)),
    **dict.fromkeys(("resnet", "resnext", "wide_resnet"), ("layer4", "fc", True)),
    **{f"vgg{kind}": (f"features.{last}", "classifier.6", False) for kind, last in _VGG.items()},
}
MIN_SIDE = 4  # in cells; a smaller CAM does not show where in a patch the evidence is
_NUM_NAMED = 3
# Error messages suggest an input size that is a multiple of this number, a usual network stride.
_STRIDE = 32
_MAX_INPUT_PX = 512
_MAX_CPU_WORK = 6e12  # parameters times px of an image, as of resnet50 at twice its usual size
_NOVELTY_STRIDE = 8  # the novelty map has at least one cell per 8 px of the image


def check_input_px(arch: Architecture, input_px: int) -> None:
    """Check that the network computes a feature map of images with ``input_px`` rows and columns.

    Raises:
        CheckpointError: The network does not accept images of this size, or its last feature map
            has only one cell.
    """
    rows, cols = _grids(arch, input_px).get(arch.cam_layer, (0, 0))
    if rows * cols < 2:
        usual = f"its size: {arch.input_px} px" if arch.input_px else f"usual size: {PATCH_PX} px"
        raise CheckpointError(
            f"{arch.name} cannot compute a feature map of images of {input_px} px; give another "
            f"--input-size ({usual})"
        )


def cam_grid(arch: Architecture, input_px: int, layer: str) -> tuple[int, int]:
    """Return the numbers of rows and columns of the CAM of an image.

    The network runs without weight values.

    Args:
        arch: Architecture of the network.
        input_px: Side of the image in px.
        layer: Name of the module whose output is the feature map.

    Raises:
        CheckpointError: The network has no module ``layer``, the output of this module is not a
            feature map, or the network does not accept images of this size.
    """
    grids = _grids(arch, input_px)
    if layer in grids:
        return grids[layer]
    if arch.cam_layer not in grids:
        raise CheckpointError(
            f"{arch.name} does not accept images of {input_px} px; train it with another "
            f"--input-size (usual size: {arch.input_px or PATCH_PX} px)"
        )
    finer = _finer_layers(grids, last=arch.cam_layer).values()
    remedy = f"give --cam-layer {_either(finer)}" if finer else "train with a larger --input-size"
    names = [name for name, _ in build_empty(arch.build, 2).named_modules() if name]
    if layer in names:
        raise CheckpointError(
            f"the output of layer {layer} of {arch.name} is not a feature map (N, C, h, w), so it "
            f"has no CAM; {remedy}"
        )
    near = difflib.get_close_matches(layer, names, n=_NUM_NAMED)
    hint = f"did you mean {_either(near)}?" if near else remedy
    raise CheckpointError(f"{arch.name} has no layer {layer!r}; {hint}")


@functools.cache
def default_cam_layer(arch: Architecture, input_px: int | None) -> str:
    """Return the name of the layer from which CAMs are computed by default.

    The default is the layer of the last feature map that has at least ``MIN_SIDE`` rows and
    columns. If all feature maps are smaller, the default is the layer of the last feature map.

    Args:
        arch: Architecture of the network.
        input_px: Side of an image in px; None: return the layer of the last feature map.
    """
    if input_px is None:
        return arch.cam_layer
    grids = _grids(arch, input_px)
    if min(grids.get(arch.cam_layer, (MIN_SIDE,))) >= MIN_SIDE:
        return arch.cam_layer
    return next(iter(_finer_layers(grids, last=arch.cam_layer)), arch.cam_layer)


@functools.cache
def novelty_layer(arch: Architecture, input_px: int) -> str:
    """Return the name of the layer whose feature map the novelty model uses.

    This is the last layer whose feature map has at least one row and one column per 8 px of the
    image. If there is no such layer, return the layer of the last feature map.
    """
    grids = _grids(arch, input_px)
    names = list(grids)[: list(grids).index(arch.cam_layer) + 1] if arch.cam_layer in grids else []
    fine = [name for name in names if _NOVELTY_STRIDE * min(grids[name]) >= input_px]
    if not fine:
        return arch.cam_layer
    # The least nested module with the smallest grid is a stage of the network.
    smallest = min(grids[name] for name in fine)
    nesting = min(name.count(".") for name in fine if grids[name] == smallest)
    return [n for n in fine if grids[n] == smallest and n.count(".") == nesting][-1]


@functools.cache
def num_channels(arch: Architecture, input_px: int, layer: str) -> int:
    """Return the number of channels of a layer's feature map; 0 if the output is no feature map."""
    if layer not in _grids(arch, input_px):
        return 0
    return _output_shapes(arch, input_px)[layer][1]


@functools.cache
def check_cam_layer(arch: Architecture, input_px: int, layer: str) -> None:
    """Raise CheckpointError if the CAM of a layer has fewer than ``MIN_SIDE`` rows or columns."""
    rows, cols = cam_grid(arch, input_px, layer)
    if min(rows, cols) >= MIN_SIDE:
        return
    larger = range(input_px // _STRIDE * _STRIDE + _STRIDE, _MAX_INPUT_PX + 1, _STRIDE)
    fine = (px for px in larger if min(_grids(arch, px).get(layer, (0,))) >= MIN_SIDE)
    remedies = [f"--input-size {px} when training" for px in itertools.islice(fine, 1)]
    if finer := _finer_layers(_grids(arch, input_px), last=layer):
        remedies.append(f"--cam-layer {_either(finer.values())}")
    raise CheckpointError(
        f"CAM of {rows}x{cols} cells (layer {layer} of {arch.name}, images of {input_px} px) is "
        f"too coarse to show anything; give {', or '.join(remedies) or 'larger patches'}"
    )


@functools.cache
def _grids(arch: Architecture, input_px: int) -> Mapping[str, tuple[int, int]]:
    """Return (rows, columns) of each module's feature map, in the order of the forward pass."""
    # An output of 4 dimensions is not always a feature map (N, C, h, w): transformers have outputs
    # (N, h, w, C) or (N, windows, cells, C). In a feature map, dimension 1 stays the same if the
    # image is twice as large. If the network does not accept this size, the check is skipped.
    doubled = _output_shapes(arch, 2 * input_px)
    return {
        name: (shape[2], shape[3])
        for name, shape in _output_shapes(arch, input_px).items()
        if len(shape) == 4 and shape[2] == shape[3] and shape[1] == doubled.get(name, shape)[1]
    }


def _output_shapes(arch: Architecture, input_px: int) -> dict[str, torch.Size]:
    """Return the shape of each module's last output; {} if the network rejects this image size."""
    network, device = build_empty(arch.build, 2).to("meta"), "meta"
    # The meta device needs no memory, but its first forward pass imports torch's compiler for two
    # seconds.
    if sum(map(Tensor.numel, network.parameters())) * input_px**2 <= _MAX_CPU_WORK:
        network, device = build_empty(arch.build, 2, device="cpu"), "cpu"
    network.eval()
    shapes: dict[str, torch.Size] = {}

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # the output of an attention layer is a tuple
            shapes.pop(name, None)
            shapes[name] = output.shape

    for name, module in network.named_modules():
        module.register_forward_hook(functools.partial(record, name))
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, input_px, input_px, device=device))
    # Layers raise these errors for an empty feature map. Attention layers raise them for a feature
    # map that cannot be divided into their windows.
    except (RuntimeError, ValueError, AssertionError):
        return {}
    return shapes


def _finer_layers(grids: Mapping[str, tuple[int, int]], *, last: str) -> dict[str, str]:
    """Return at most 3 layers whose feature maps have enough cells for a CAM.

    In the result, a key is the name of a layer, and its value is a text with the name and the grid
    size. The layer with the smallest feature map is first. Layers after ``last`` are not
    candidates.
    """
    names = list(grids)
    chosen: dict[tuple[int, int], str] = {}
    for name in names[: names.index(last) + 1]:
        grid = grids[name]
        # If several modules have the same grid, choose the least nested one: it is a stage of
        # the network, not a convolution inside the stage.
        if min(grid) >= MIN_SIDE and name.count(".") <= chosen.get(grid, name).count("."):
            chosen[grid] = name
    named = sorted(chosen.items())[:_NUM_NAMED]
    return {name: f"{name} ({rows}x{cols})" for (rows, cols), name in named}


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
