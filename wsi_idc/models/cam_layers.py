"""Layers that a CAM can be taken from, and the size of their feature maps."""

import difflib
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import Architecture, build_on_meta

MIN_SIDE = 4  # cells; a coarser CAM shows no more than the patch's probability
_NUM_NAMED = 3
# A larger input size is searched among multiples of the usual network strides.
_STRIDE = 32
_MAX_INPUT_PX = 512


def check_input_px(arch: Architecture, input_px: int) -> None:
    """Check that the network makes a feature map of images of ``input_px`` a side.

    Raises:
        CheckpointError: The network does not accept this size, or its map is a single cell.
    """
    rows, cols = _grids(arch, input_px).get(arch.cam_layer, (0, 0))
    if rows * cols < 2:
        usual = f"{arch.input_px} px is its own" if arch.input_px else f"{PATCH_PX} px is usual"
        raise CheckpointError(
            f"{arch.name} cannot work on images of {input_px} px, or makes no map of them; give "
            f"another --input-size ({usual})"
        )


def cam_grid(arch: Architecture, input_px: int, layer: str | None = None) -> tuple[int, int]:
    """Return the rows and columns of a CAM of images of ``input_px`` a side.

    ``layer`` is the name of a module; None is the last feature map. The network is traced on the
    meta device, without memory and without weights.

    Raises:
        CheckpointError: There is no such module, its output is no feature map, or the network does
            not accept images of this size.
    """
    name = arch.cam_layer if layer is None else layer
    grids = _grids(arch, input_px)
    if name in grids:
        return grids[name]
    if arch.cam_layer not in grids:
        raise CheckpointError(
            f"{arch.name} cannot work on images of {input_px} px; train it with another "
            f"--input-size ({arch.input_px or PATCH_PX} px is usual)"
        )
    finer = _finer_layers(grids, before=arch.cam_layer)
    larger = "train with a larger --input-size"
    remedy = f"give --cam-layer {_either(finer.values())}" if finer else larger
    names = [known for known, _ in build_on_meta(arch.build, 2).named_modules() if known]
    if name in names:
        raise CheckpointError(
            f"layer {name} of {arch.name} gives no feature map (N, C, h, w) to take a CAM from; "
            f"{remedy}"
        )
    near = difflib.get_close_matches(name, names, n=_NUM_NAMED)
    hint = f"did you mean {_either(near)}?" if near else remedy
    raise CheckpointError(f"{arch.name} has no layer {name!r}; {hint}")


@functools.cache
def default_cam_layer(arch: Architecture, input_px: int | None) -> str:
    """Return the name of the layer that CAMs are taken from by default.

    This is the last feature map. If images of ``input_px`` a side make that map coarser than
    ``MIN_SIDE`` cells, it is the last earlier stage that is fine enough. None: no resizing.
    """
    if input_px is None:
        return arch.cam_layer
    grids = _grids(arch, input_px)
    if min(grids.get(arch.cam_layer, (MIN_SIDE,))) >= MIN_SIDE:
        return arch.cam_layer
    return next(iter(_finer_layers(grids, before=arch.cam_layer)), arch.cam_layer)


@functools.cache
def check_cam_layer(arch: Architecture, input_px: int, layer: str | None = None) -> None:
    """Check that ``cam_grid`` gives a CAM of at least ``MIN_SIDE`` cells a side."""
    rows, cols = cam_grid(arch, input_px, layer)
    if min(rows, cols) >= MIN_SIDE:
        return
    name = arch.cam_layer if layer is None else layer
    larger = range(input_px // _STRIDE * _STRIDE + _STRIDE, _MAX_INPUT_PX + 1, _STRIDE)
    fine = (px for px in larger if min(_grids(arch, px).get(name, (0,))) >= MIN_SIDE)
    remedies = [f"--input-size {px} when training" for px in itertools.islice(fine, 1)]
    if finer := _finer_layers(_grids(arch, input_px), before=name):
        remedies.append(f"--cam-layer {_either(finer.values())}")
    raise CheckpointError(
        f"CAM of {rows}x{cols} cells at layer {name} of {arch.name} at {input_px} px: too coarse "
        f"to show anything; give {', or '.join(remedies) or 'larger patches'}"
    )


@functools.cache
def _grids(arch: Architecture, input_px: int) -> Mapping[str, tuple[int, int]]:
    """Return rows and columns of each module's feature map, in order of completion."""
    shapes = _output_shapes(arch, input_px)
    # Tokens on a grid are (N, h, w, C), windows of them (N, number, cells, C). Only the number of
    # channels is the same for an image of twice the size. Some networks accept one size only.
    doubled = _output_shapes(arch, 2 * input_px)
    return {
        name: (shape[2], shape[3])
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[2] == shape[3] and shape[1] == doubled.get(name, shape)[1]
    }


def _output_shapes(arch: Architecture, input_px: int) -> dict[str, torch.Size]:
    """Return the shape of each module's last output; nothing if this size is not accepted."""
    network = build_on_meta(arch.build, 2).to("meta").eval()
    shapes: dict[str, torch.Size] = {}

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # the output of an attention is a tuple
            shapes.pop(name, None)
            shapes[name] = output.shape

    for name, module in network.named_modules():
        module.register_forward_hook(functools.partial(record, name))
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, input_px, input_px, device="meta"))
    # Layers raise these errors for an empty map, attention for one that it cannot divide.
    except (RuntimeError, ValueError, AssertionError):
        return {}
    return shapes


def _finer_layers(grids: Mapping[str, tuple[int, int]], *, before: str) -> dict[str, str]:
    """Return the main layers up to ``before`` with a fine CAM, the last one first, with labels."""
    names = list(grids)
    chosen: dict[tuple[int, int], str] = {}
    for name in names[: names.index(before) + 1]:
        grid = grids[name]
        # Of the modules with one grid, the least nested is a stage, not one of its convolutions.
        if min(grid) >= MIN_SIDE and name.count(".") <= chosen.get(grid, name).count("."):
            chosen[grid] = name
    named = sorted(chosen.items())[:_NUM_NAMED]
    return {name: f"{name} ({rows}x{cols})" for (rows, cols), name in named}


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
