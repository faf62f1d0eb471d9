"""Which layers of a network a CAM can be taken from, and how many cells it has there."""

import difflib
import functools
from collections.abc import Mapping

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import Architecture
from wsi_idc.models.tracing import build_on_meta, output_shapes

MIN_SIDE = 4  # cells; a coarser CAM says no more than the patch's probability does
_NUM_NAMED = 3
# What an input size is looked for among: the strides of nearly all networks divide these.
_INPUT_SIZES = range(32, 513, 32)


def cam_grid(arch: Architecture, input_px: int, layer: str | None = None) -> tuple[int, int]:
    """Return the rows and columns of a CAM of images of ``input_px`` a side.

    The network is traced without values; it takes neither memory nor weights.

    Args:
        arch: What the network is.
        input_px: Side of the images that the network gets.
        layer: Name of a module; None is the last feature map.

    Raises:
        CheckpointError: There is no such module, it gives no feature map, or the network does not
            take images of this size.
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
    names = [known for known, _ in build_on_meta(arch.build, 2).named_modules() if known]
    finer = _candidates(grids, before=arch.cam_layer)
    remedy = f"give --cam-layer {_listed(finer)}" if finer else "train with a larger --input-size"
    if name in names:
        raise CheckpointError(
            f"layer {name} of {arch.name} gives no feature map (N, C, h, w) to take a CAM from; "
            f"{remedy}"
        )
    near = difflib.get_close_matches(name, names, n=_NUM_NAMED)
    hint = f"did you mean {_either(near)}?" if near else remedy
    raise CheckpointError(f"{arch.name} has no layer {name!r}; {hint}")


@functools.cache
def usual_cam_layer(arch: Architecture, input_px: int | None) -> str:
    """Return the layer that CAMs are taken from where nobody asks for another.

    The last feature map or, where the images are so small that it would be too coarse to show
    anything, the last stage before it that is fine enough.

    Args:
        arch: What the network is.
        input_px: Side of the images that the network gets; None: they are as they are stored.
    """
    if input_px is None:
        return arch.cam_layer
    grids = _grids(arch, input_px)
    if min(grids.get(arch.cam_layer, (MIN_SIDE,))) >= MIN_SIDE:
        return arch.cam_layer
    return next(iter(_candidates(grids, before=arch.cam_layer)), arch.cam_layer)


@functools.cache
def check_cam_layer(arch: Architecture, input_px: int, layer: str | None = None) -> None:
    """Raise where a CAM from ``layer`` would show nothing.

    Args:
        arch: What the network is.
        input_px: Side of the images that the network gets.
        layer: Name of a module; None is the last feature map.

    Raises:
        CheckpointError: As of ``cam_grid``; or the CAM has less than ``MIN_SIDE`` cells a side.
    """
    rows, cols = cam_grid(arch, input_px, layer)
    if min(rows, cols) >= MIN_SIDE:
        return
    name = arch.cam_layer if layer is None else layer
    finer = _candidates(_grids(arch, input_px), before=name)
    enough = (
        px
        for px in _INPUT_SIZES
        if px > input_px and min(_grids(arch, px).get(name, (0,))) >= MIN_SIDE
    )
    larger = next(enough, None)
    remedies = [
        f"--input-size {larger} when training" if larger else "",
        f"--cam-layer {_listed(finer)}" if finer else "",
    ]
    raise CheckpointError(
        f"CAM of {rows}x{cols} cells at layer {name} of {arch.name} at {input_px} px: too coarse "
        f"to show anything; give {', or '.join(filter(None, remedies)) or 'larger patches'}"
    )


@functools.cache
def _grids(arch: Architecture, input_px: int) -> Mapping[str, tuple[int, int]]:
    """Return rows and columns of each module's map (N, C, h, w), in order of completion."""
    shapes = output_shapes(arch.build, input_px=input_px)
    # Tokens on a grid are (N, h, w, C), and windows of them (N, number, cells, C): what are
    # channels does not change with the size of the image. Some networks take one size alone.
    doubled = output_shapes(arch.build, input_px=2 * input_px)
    return {
        name: (shape[2], shape[3])
        for name, shape in shapes.items()
        if name
        and len(shape) == 4
        and shape[2] == shape[3]
        and shape[1] == doubled.get(name, shape)[1]
    }


def _candidates(grids: Mapping[str, tuple[int, int]], *, before: str) -> dict[str, tuple[int, int]]:
    """Return the main layers, no later than ``before``, whose CAM is fine enough; last first."""
    names = list(grids)
    chosen: dict[tuple[int, int], str] = {}
    for name in names[: names.index(before) + 1]:
        grid = grids[name]
        # The least nested of a grid is a stage, not one of its convolutions.
        nested = chosen.get(grid, name).count(".")
        if min(grid) >= MIN_SIDE and name.count(".") <= nested:
            chosen[grid] = name
    return {chosen[grid]: grid for grid in sorted(chosen)[:_NUM_NAMED]}


def _listed(candidates: Mapping[str, tuple[int, int]]) -> str:
    """Return "layer4 (7x7), layer3 (14x14) or layer2 (28x28)"."""
    return _either([f"{name} ({rows}x{cols})" for name, (rows, cols) in candidates.items()])


def _either(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
