import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import make_classifier, random_patches
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.architecture import build_empty
from wsi_idc.models.cam_layers import (
    MIN_SIDE,
    cam_grid,
    check_cam_layer,
    check_input_px,
    default_cam_layer,
    novelty_layer,
    num_channels,
)
from wsi_idc.models.registry import MODEL_NAMES, architecture

_NUM_CLASSES = 997  # the number of channels of no network
_INPUT_PX = 224
_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_NO_CHANGE = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)


def find_cam_and_head(build: Callable[[int], nn.Module]) -> tuple[str, str, bool]:
    """Return the last feature map, the head, and whether the logits are the head of its mean."""
    network = build_empty(build, _NUM_CLASSES).to("meta").eval()
    calls: list[tuple[str, nn.Module, Tensor]] = []  # in order of completion

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append((name, module, output))

    for name, module in network.named_modules():
        module.register_forward_hook(functools.partial(record, name))
    with torch.no_grad():
        network(torch.empty(1, 3, _INPUT_PX, _INPUT_PX, device="meta"))
    head_at = max(number for number, (_, module, _) in enumerate(calls) if _is_head(module))
    # The output of a block that ends in a pooling is pooled: the finer map is before it.
    pooled = {id(output) for _, module, output in calls[:head_at] if isinstance(module, _POOLING)}
    map_at = max(
        number
        for number, (_, module, output) in enumerate(calls[:head_at])
        if output.ndim == 4
        and output.shape[-2:].numel() > 1
        and id(output) not in pooled
        and not isinstance(module, _NO_CHANGE)
    )
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
    return cam_layer, head, closed_form


def _is_head(module: nn.Module) -> bool:
    size = getattr(module, "out_features", getattr(module, "out_channels", None))
    return isinstance(module, nn.Linear | nn.Conv2d) and size == _NUM_CLASSES


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


# Networks of each family of torchvision, and the input sizes of those that differ from 224 px.
FAMILIES = """
    cnn cnn-bn mobilenet-v2-s16 efficientnet-b0 efficientnet_b2 alexnet convnext_tiny densenet121
    googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf
    resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11
    vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet50_2
"""
INPUT_PX = {"mobilenet-v2-s16": 96, "efficientnet_b2": 288, "inception_v3": 299, "swin_v2_t": 256}


@pytest.mark.parametrize("name", FAMILIES.split())
def test_the_table_has_the_layers_that_a_trace_finds(name: str):
    arch, is_own = architecture(name), name in ("cnn", "cnn-bn", "mobilenet-v2-s16")
    assert (arch.name, arch.input_px) == (
        name,
        None if name in ("cnn", "cnn-bn") else INPUT_PX.get(name, 224),
    )
    assert find_cam_and_head(arch.build) == (arch.cam_layer, arch.head, arch.closed_form)
    assert (arch.imagenet is None) == is_own


@pytest.mark.parametrize(
    ("name", "input_px", "layer"),
    [
        ("cnn-bn", 50, "features"),
        ("cnn-bn", 50, "features.10"),
        ("resnet18", 64, "layer2.0.conv1"),
        ("resnet18", 75, "layer3"),
        # Called twice, first on a finer map.
        ("resnet50", 64, "layer4.0.relu"),
        ("convnext_tiny", 64, "features.1.0.block.6"),
    ],
)
def test_the_grid_is_that_of_the_output(name: str, input_px: int, layer: str):
    classifier = make_classifier(name, input_px=input_px)
    shapes: list[torch.Size] = []
    module = classifier.network.get_submodule(layer)
    module.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with torch.inference_mode():
        classifier(random_patches(1))
    assert cam_grid(classifier.arch, input_px, layer) == shapes[-1][2:]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_default_size_is_fine_enough(name: str):
    arch = architecture(name)
    check_input_px(arch, arch.input_px or 50)
    check_cam_layer(arch, arch.input_px or 50, arch.cam_layer)


TOO_COARSE = "too coarse to show anything; give "
ATTENTION = "blocks.0.layers.0.layers.window_attention.attn_layer"
NO_MAP = "is not a feature map"


@pytest.mark.parametrize(
    ("name", "input_px", "layer", "message"),
    [
        ("resnet18", 20, None, r"resnet18 cannot .* 20 px; .*--input-size \(its size: 224 px\)"),
        ("inception_v3", 20, None, r"inception_v3 cannot compute .*\(its size: 299 px\)"),
        ("cnn", 8, None, r"cnn cannot compute .* of 8 px; .* \(usual size: 50 px\)"),
        ("resnet18", 224, "layer5", "no layer 'layer5'; did you mean layer4, layer3 or layer2"),
        ("resnet18", 224, "a\nb", r"'a\\nb'; give --cam-layer layer4 \(7x7\), layer3 \(14x14\)"),
        ("resnet18", 224, "", "has no layer ''"),
        ("resnet18", 224, "fc", f"layer fc of resnet18 {NO_MAP} .*layer4"),
        # Four axes, but the channels are the last one.
        ("convnext_tiny", 64, "features.1.0.block.3", NO_MAP),
        ("swin_t", 224, "features.5", NO_MAP),
        ("maxvit_t", 224, ATTENTION, NO_MAP),  # accepts one image size only
        ("inception_v3", 20, "Mixed_7c", "does not accept images of 20 px; .*usual size: 299 px"),
        ("resnet18", 224, "avgpool", f"CAM of 1x1 cells .* avgpool .*{TOO_COARSE}--cam-layer"),
        ("resnet18", 1, "layer4", f"CAM of 1x1 .*{TOO_COARSE}--input-size 128 when training$"),
        ("cnn-bn", 24, "features", f"CAM of 3x3 .*{TOO_COARSE}--input-size 32 .*features.16"),
    ],
)
def test_an_unusable_size_or_layer_is_refused_in_one_line(
    name: str, input_px: int, layer: str | None, message: str
):
    arch = architecture(name)
    with pytest.raises(CheckpointError, match=message) as caught:
        if layer is None:
            check_input_px(arch, input_px)
        else:
            check_cam_layer(arch, input_px, layer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "inception_v3"])
def test_the_suggested_layers_exist_and_are_fine_enough(name: str):
    arch = architecture(name)
    with pytest.raises(CheckpointError) as caught:
        check_cam_layer(arch, 80, arch.cam_layer)
    _, _, listed = str(caught.value).partition("--cam-layer ")
    suggested = listed.replace(" or ", ", ").split(", ")
    assert len(suggested) == 3
    for candidate in suggested:
        layer, _, grid = candidate.partition(" ")
        rows, cols = cam_grid(arch, 80, layer)
        assert grid == f"({rows}x{cols})"
        assert rows >= MIN_SIDE


@pytest.mark.parametrize(
    ("name", "input_px", "expected"),
    [
        ("mobilenet_v2", 224, "features"),
        ("mobilenet_v2", 96, "features.13"),
        ("resnet18", 64, "layer3"),
        ("cnn-bn", None, "features"),
        # No layer is fine enough; check_cam_layer refuses this one.
        ("resnet18", 1, "layer4"),
    ],
)
def test_the_default_layer_is_the_last_that_is_fine_enough(name, input_px, expected):
    assert default_cam_layer(architecture(name), input_px) == expected


@pytest.mark.parametrize(
    ("name", "input_px", "layer", "channels"),
    [
        ("cnn", 50, "features.11", 96),
        ("resnet18", 224, "layer2", 128),
        ("mobilenet_v2", 96, "features.6", 32),
        ("convnext_tiny", 224, "features.3", 192),
        ("resnet18", 1, "layer4", 512),  # no map is large enough
    ],
)
def test_novelty_uses_the_last_map_with_an_eighth_of_the_rows(
    name: str, input_px: int, layer: str, channels: int
):
    arch = architecture(name)
    assert novelty_layer(arch, input_px) == layer
    assert num_channels(arch, input_px, layer) == channels
    assert num_channels(arch, input_px, "no layer") == 0
