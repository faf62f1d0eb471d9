"""Descriptions of the networks that a training can start from."""

from collections.abc import Sequence
from dataclasses import dataclass

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.architecture import Architecture, HubWeights, num_parameters
from wsi_idc.models.cam_layers import cam_grid, default_cam_layer
from wsi_idc.models.pretrained import published_licence, weights_file
from wsi_idc.models.registry import MODEL_NAMES, architecture

MAX_DESCRIBED = 40  # networks of timm; each takes up to a second


@dataclass(frozen=True)
class ModelDescription:
    """Description of a network.

    Attributes:
        name: Name of the network, as ``--model`` takes it.
        parameters: Number of parameters, with a head of two classes.
        input_px: Side of the resized patch in px.
        cam_rows: Number of rows of a CAM; a CAM is square.
        closed_form: Whether Grad-CAM needs no gradient.
        weights: "here" if the published weights are on this machine, "fetch-weights" if this
            command must download them, or "none".
        licence: Licence of the published weights; None if it is not known.
    """

    name: str
    parameters: int
    input_px: int
    cam_rows: int
    closed_form: bool
    weights: str
    licence: str | None


def describe_models(pattern: str | None) -> tuple[list[ModelDescription], dict[str, str]]:
    """Describe the usual networks, one network, or the networks of timm that match a pattern.

    Args:
        pattern: Pattern of names of timm with ``*``, such as "vit_small*"; or a name that begins
            with "timm:" or "hf-hub:"; None: usual networks.

    Returns:
        Descriptions, and the reason for each network that is not supported.

    Raises:
        CheckpointError: No name matches the pattern, or too many names match; or the one network is
            not supported.
    """
    if pattern and ":" in pattern and not set("*?[").intersection(pattern):
        return [_describe(architecture(pattern))], {}
    names = MODEL_NAMES if pattern is None else _timm_names(pattern)
    described, refused = [], {}
    for name in names:
        try:
            described.append(_describe(architecture(name)))
        except CheckpointError as error:
            refused[name] = str(error)
    return described, refused


def _timm_names(pattern: str) -> Sequence[str]:
    from wsi_idc.models.timm_models import TIMM, list_names

    names = list_names(pattern.removeprefix(TIMM))
    if not 0 < len(names) <= MAX_DESCRIBED:
        raise CheckpointError(
            f"{len(names)} names of timm match {pattern!r}; give a pattern of 1 to {MAX_DESCRIBED} "
            "names, such as 'convnext_*'"
        )
    return [f"{TIMM}{name}" for name in names]


def _describe(arch: Architecture) -> ModelDescription:
    input_px = arch.input_px or PATCH_PX
    rows, _ = cam_grid(arch, input_px, default_cam_layer(arch, input_px))
    return ModelDescription(
        arch.name,
        parameters=num_parameters(arch),
        input_px=input_px,
        cam_rows=rows,
        closed_form=arch.closed_form,
        weights=_weights(arch),
        licence=published_licence(arch),
    )


def _weights(arch: Architecture) -> str:
    """Return the state of the published weights."""
    if arch.imagenet is None:
        return "none"
    if isinstance(arch.imagenet, HubWeights):
        from wsi_idc.models.timm_models import has_hub_weights

        is_here = has_hub_weights(arch.imagenet)
    else:
        is_here = weights_file(arch).exists()
    return "here" if is_here else "fetch-weights"
