"""Networks of the timm library, with a feature map for CAMs; their weights on the Hugging Face hub.

Import this module only for a network of timm: it imports timm, which takes two seconds.
"""

import contextlib
import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_idc.core.constants import INTERPOLATIONS
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.architecture import OTHER_WEIGHTS, Architecture, HubWeights, build_empty
from wsi_idc.models.feature_map import FEATURE_MAP, MappedNetwork, token_grid
from wsi_idc.models.light_torchvision import import_torchvision

# Without this variable, compute nodes without a network would ask the hub for minutes. The command
# fetch-weights sets it to 0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import_torchvision()  # timm imports it, too
try:
    import timm
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
    from timm.layers import SwiGLUPacked
except ImportError:
    raise CheckpointError(
        "models whose names begin with timm: or hf-hub: need the package timm; run pip install timm"
    ) from None

TIMM, HUB = "timm:", "hf-hub:"
_FILES = ("model.safetensors", "pytorch_model.bin")
_HEAD_STD = 0.01  # standard deviation of the weights of a new last layer
_HUB_ERRORS = (OSError, HfHubHTTPError)
_NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AssertionError)
# Modules that do not change the closed form of Grad-CAM, and those that average the cells.
_AVERAGE = {"AdaptiveAvgPool2d", "FastAdaptiveAvgPool"}
_PASSIVE = {"Identity", "Dropout", "Flatten", *_AVERAGE}
_SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
_VIRCHOW = {**_SWIGLU, "global_pool": "token"}  # its configuration has no pooling
# Arguments that model cards ask for, because the configuration on the hub does not have them. The
# card of OWNER/NAME is https://huggingface.co/OWNER/NAME. The hub ignores case.
_ENCODER_ARGS: dict[str, dict[str, Any]] = {
    "mahmoodlab/uni": {"init_values": 1e-5, "dynamic_img_size": True},
    "mahmoodlab/uni2-h": {
        **{"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536},
        **{"init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True},
        **{"reg_tokens": 8, "dynamic_img_size": True, **_SWIGLU},
    },
    "paige-ai/virchow": _VIRCHOW,
    "paige-ai/virchow2": _VIRCHOW,
    "bioptimus/h-optimus-0": {"init_values": 1e-5, "dynamic_img_size": False},
}


@functools.cache
def timm_architecture(name: str) -> Architecture:
    """Return the architecture of a name that begins with "timm:" or "hf-hub:".

    Raises:
        CheckpointError: timm has no such network, its configuration is not on this machine, or the
            logits do not depend on a square feature map.
    """
    return examine(name)[0]


def examine(name: str) -> tuple[Architecture, int]:
    """Return the architecture of a name, and the rows of its feature map at the usual input size.

    The feature map is square. The errors are those of ``timm_architecture``.
    """
    try:
        create = _creator(name)
        encoder = build_empty(create, 2).to("meta").eval()
    except _HUB_ERRORS as error:
        raise _hub_error(name, error) from None
    except _NETWORK_ERRORS as error:
        raise CheckpointError(f"{name}: timm cannot build this network: {error}") from None
    config: Any = encoder.pretrained_cfg
    repository = name.removeprefix(HUB)
    input_px, interpolation = int(config["input_size"][-1]), config["interpolation"]
    head = _head(encoder, name)
    second_head = _second_head(encoder)
    try:
        form = (*_form(encoder, input_px, name), second_head and second_head.removesuffix("_dist"))
        network = MappedNetwork(encoder, *form).eval()
        logits, num_rows, after = _layers_after_map(network, input_px)
    except _NETWORK_ERRORS as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name} does not take its usual input size: {reason}") from None
    if logits.shape != (1, 2):
        raise CheckpointError(f"{name} does not pool its features, so it has no logits")

    def build(num_classes: int) -> nn.Module:
        return MappedNetwork(create(num_classes), *form)

    arch = Architecture(
        name,
        build,
        cam_layer=FEATURE_MAP,
        head=f"encoder.{head}",
        closed_form=_is_closed_form(network, head, after),
        input_px=input_px,
        imagenet=HubWeights(
            tuple(config["mean"]),
            tuple(config["std"]),
            repository=repository if name.startswith(HUB) else config.get("hf_hub_id") or "",
            licence=config.get("license"),
        ),
        unused=(f"encoder.{second_head}.",) if second_head else (),
        prefix="encoder.",
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
    )
    return arch, num_rows


def list_names(pattern: str) -> list[str]:
    """Return the names of timm's networks that match a pattern with ``*``."""
    return timm.list_models(pattern)


def _creator(name: str) -> Callable[..., nn.Module]:
    """Return a function that builds a network of timm for a number of classes."""
    model, repository = name.removeprefix(TIMM), name.removeprefix(HUB)
    if name.startswith(TIMM) and not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise CheckpointError(f"timm has no model {model!r}; {hint}")
    # Only some transformers have this argument: they take images of any size.
    any_size = {"dynamic_img_size": True}
    args = _ENCODER_ARGS.get(repository.lower(), {})

    def create(num_classes: int, **options: Any) -> nn.Module:
        options = {"num_classes": num_classes, **args, **options}
        try:
            network = timm.create_model(model, **(any_size | options))
        except TypeError:
            network = timm.create_model(model, **options)
        if head_dist := _second_head(network):
            network.set_submodule(head_dist, nn.Identity())
        # Some families start with logits of two digits, because their rule is for 1000 classes.
        head = getattr(network, "get_classifier", lambda: None)()
        if isinstance(head, nn.Linear | nn.Conv2d):
            nn.init.normal_(head.weight, std=_HEAD_STD)
            if head.bias is not None:
                nn.init.zeros_(head.bias)
        return network

    return create


def _second_head(encoder: Any) -> str | None:
    """Return the name of a head for distillation, such as "head_dist", whose logits are averaged.

    This head is not used: the mean of two linear layers is a linear layer.
    """
    classifier = encoder.pretrained_cfg["classifier"]
    if not isinstance(classifier, tuple) or len(classifier) != 2:
        return None
    start, found, _ = classifier[1].partition("head_dist")
    return f"{start}{found}" if found and classifier[0].startswith(f"{start}head") else None


def _head(encoder: Any, name: str) -> str:
    """Return the name of the last layer."""
    classifier = encoder.pretrained_cfg["classifier"]
    if _second_head(encoder):
        classifier = classifier[0]
    if isinstance(classifier, tuple):
        raise CheckpointError(f"{name} has several heads; choose another model")
    layer = dict(encoder.named_modules()).get(classifier)
    if isinstance(getattr(layer, "weight", None), Tensor):
        return classifier
    raise CheckpointError(f"{name} has no linear layer at its end; choose another model")


def _form(encoder: Any, input_px: int, name: str) -> tuple[str, str | None]:
    """Return the arguments ``layout`` and ``block`` of ``MappedNetwork``."""
    inputs: list[Any] = []
    blocks: Any = getattr(encoder, "blocks", None)
    has_blocks = isinstance(blocks, (nn.Sequential, nn.ModuleList)) and len(blocks) > 0
    with contextlib.ExitStack() as stack:
        if has_blocks:
            hook = blocks[-1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            stack.enter_context(hook)
        with torch.no_grad():
            features = encoder.forward_features(_image(input_px))
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise CheckpointError(f"{name} has no single feature map, so it has no CAM")
    if features.ndim == 4:
        channels = encoder.num_features
        is_last = getattr(encoder, "output_fmt", "") == "NHWC" or features.shape[1] != channels
        rows, cols = features.shape[1:3] if is_last else features.shape[2:]
        if features.shape[3 if is_last else 1] != channels or rows != cols:
            raise CheckpointError(f"{name}: the feature map is not square, so it has no CAM")
        return "NHWC" if is_last else "NCHW", None
    is_token = getattr(encoder, "global_pool", None) == "token"
    if is_token and not has_blocks:
        raise CheckpointError(
            f"{name} classifies its class token, and has no list of blocks, so it has no CAM"
        )
    tokens = inputs[-1] if is_token else features
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != 1:
        raise CheckpointError(f"{name}: the last block does not take one grid of tokens")
    if token_grid(tokens.shape[1]) is None:
        raise CheckpointError(f"{name}: {tokens.shape[1]} tokens are no square grid: it has no CAM")
    return "NTC", f"blocks.{len(blocks) - 1}" if is_token else None


def _layers_after_map(network: MappedNetwork, input_px: int) -> tuple[Tensor, int, list[nn.Module]]:
    """Return the logits, the rows of the feature map, and the layers that run after the map."""
    layers: list[nn.Module] = []
    num_rows: list[int] = []
    with contextlib.ExitStack() as stack:
        for module in network.modules():
            if not any(module.children()):
                hook = module.register_forward_hook(lambda layer, *_: layers.append(layer))
                stack.enter_context(hook)
        hook = network.feature_map.register_forward_hook(
            lambda _, inputs, output: num_rows.append(output.shape[2])
        )
        stack.enter_context(hook)
        with torch.no_grad():
            logits = network(_image(input_px))
    return logits, num_rows[-1], layers[layers.index(network.feature_map) + 1 :]


def _is_closed_form(network: MappedNetwork, head: str, after: list[nn.Module]) -> bool:
    """Return whether only average pooling and a linear layer follow the feature map."""
    linear = network.encoder.get_submodule(head)
    if network.layout == "NTC" or not isinstance(linear, nn.Linear):
        return False
    kinds = [type(layer).__name__ for layer in after if layer is not linear]
    return linear in after and set(kinds) <= _PASSIVE and not _AVERAGE.isdisjoint(kinds)


def _image(input_px: int) -> Tensor:
    return torch.empty(1, 3, input_px, input_px, device="meta")


def load_hub_weights(network: nn.Module, arch: Architecture) -> None:
    """Load published weights from the cache of the hub into all layers except the head.

    Raises:
        CheckpointError: The weights are not on this machine.
    """
    head: Any = network.get_submodule(arch.head)
    published = build_published(arch, len(head.weight)).state_dict()
    own = network.state_dict()
    for name in own:
        if not name.startswith(f"{arch.head}."):
            own[name] = published[name.removeprefix(arch.prefix)]
    network.load_state_dict(own)


def has_hub_weights(weights: HubWeights) -> bool:
    """Return whether the file of published weights is in the cache of the hub."""
    paths = (try_to_load_from_cache(weights.repository, name) for name in _FILES)
    return bool(weights.repository) and any(isinstance(path, str) for path in paths)


def fetch_hub_weights(arch: Architecture) -> Path:
    """Download published weights into the cache of the hub; return the folder of the cache.

    Raises:
        CheckpointError: The download failed, or the user has no access to the weights.
    """
    build_published(arch, 2)
    return Path(HF_HUB_CACHE)


def build_published(arch: Architecture, num_classes: int) -> nn.Module:
    """Build a network of timm with its published weights, and a head with random weights.

    Raises:
        CheckpointError: The weights are not on this machine, or cannot be downloaded.
    """
    try:
        return _creator(arch.name)(num_classes, pretrained=True)
    except _HUB_ERRORS as error:
        raise _hub_error(arch.name, error) from None


def _hub_error(name: str, error: Exception) -> CheckpointError:
    """Return the error of weights or a configuration that the hub does not give."""
    if isinstance(error, GatedRepoError):
        repository = name.removeprefix(HUB).removeprefix(TIMM)
        return CheckpointError(
            f"{name} is gated: request access at https://huggingface.co/{repository}, log in with "
            f"`hf auth login`, and run `wsi-idc fetch-weights {name}` again"
        )
    if os.environ["HF_HUB_OFFLINE"] == "0":
        return CheckpointError(f"could not fetch {name} ({error})".splitlines()[0])
    return CheckpointError(
        f"the files of {name} are not on this machine (folder {HF_HUB_CACHE}); run `wsi-idc "
        f"fetch-weights {name}` on a machine with internet access"
        + (OTHER_WEIGHTS if name.startswith(TIMM) else "")
    )
