"""Whether what a checkpoint says can be what training wrote; it may come from anyone."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsi_idc.models.registry import Architecture
from wsi_idc.training.config import POSSIBLE_MPP, POSSIBLE_TEMPERATURE, ROLES

if TYPE_CHECKING:
    from wsi_idc.models.checkpoint import Checkpoint, InputSpec

NUM_CLASSES = 2
_MAX_PATCH_PX = 4096
_MAX_INPUT_PX = 1024
_MAX_SIGMA_CELLS = 100.0


def is_temperature(value: float) -> bool:
    """Return whether logits can be divided by it and stay numbers."""
    coldest, warmest = POSSIBLE_TEMPERATURE
    return coldest <= value <= warmest


def check_input(spec: "InputSpec") -> None:
    """Raise ValueError where no network takes such patches."""
    sizes = (spec.patch_px, spec.mpp, 1 if spec.input_px is None else spec.input_px, *spec.std)
    if not all(0 < size < math.inf for size in sizes) or not len(spec.mean) == len(spec.std) == 3:
        raise ValueError("the input is not stated in positive numbers of three channels")
    if not all(0 <= value <= 1 for value in spec.mean):
        raise ValueError("the input's mean is not within 0..1")
    finest, coarsest = POSSIBLE_MPP
    if spec.patch_px > _MAX_PATCH_PX or not finest <= spec.mpp <= coarsest:
        raise ValueError(f"no slide has patches of {spec.patch_px} px of {spec.mpp:g} um")
    if spec.input_px is not None and spec.input_px > _MAX_INPUT_PX:
        raise ValueError(f"no network takes {spec.input_px} px")


def check_numbers(checkpoint: "Checkpoint", arch: Architecture) -> None:
    """Raise ValueError where a field cannot be what training wrote."""
    if not is_temperature(checkpoint.temperature) or not 0 <= checkpoint.threshold <= 1:
        raise ValueError("temperature or threshold out of range")
    smoothing, spec = checkpoint.smoothing, checkpoint.input
    if smoothing and smoothing.sigma_um > _MAX_SIGMA_CELLS * spec.patch_px * spec.mpp:
        raise ValueError(f"no smoothing reaches {smoothing.sigma_um:g} um")
    if len(checkpoint.class_names) != NUM_CLASSES:
        raise ValueError(f"{len(checkpoint.class_names)} classes, not {NUM_CLASSES}")
    if checkpoint.cam_layer != arch.cam_layer:
        raise ValueError(f"no CAM is taken from the layer {checkpoint.cam_layer!r}")
    if unknown := set(checkpoint.split.values()).difference(ROLES):
        raise ValueError(f"no patient has the role {unknown.pop()!r}")
    # Plain values only: all but the weights is written into maps as JSON, which knows no NaN.
    plain = [checkpoint.metrics, checkpoint.provenance, checkpoint.config]
    json.dumps(plain, allow_nan=False)


def check_weights(state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether a state has the names and shapes that are wanted; no memory is taken for it.

    Raises:
        ValueError: A weight is no finite number, or nothing that has a value.
    """
    for name, value in state.items():
        if not is_plain(value):
            raise ValueError(f"{str(name)!r} is not a tensor of plain numbers")
    if wanted.keys() != state.keys():
        return False
    if any(state[name].shape != value.shape for name, value in wanted.items()):
        return False
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ValueError("a weight is not a finite number")
    return True


def is_plain(value: Any) -> bool:
    """Return whether it is a tensor of real numbers that are there."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )
