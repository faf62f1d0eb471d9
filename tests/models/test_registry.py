import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import make_classifier, random_patches
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.cam_layers import (
    MIN_SIDE,
    cam_grid,
    check_cam_layer,
    check_input_px,
    default_cam_layer,
)
from wsi_idc.models.registry import ARCHITECTURES, architecture, build_on_meta

_NUM_CLASSES = 997  # the number of channels of no network
_INPUT_PX = 224
_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_NO_CHANGE = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)

Call = tuple[str, nn.Module, Tensor]  # name, module, output


def find_cam_and_head(build: Callable[[int], nn.Module]) -> tuple[str, str, bool]:
    """Return the last feature map, the head, and whether the logits are the head of its mean."""
    network = build_on_meta(build, _NUM_CLASSES).to("meta").eval()
    calls = _trace(network)
    head_at = max(number for number, (_, module, _) in enumerate(calls) if _is_head(module))
    map_at = _last_map(calls[:head_at])
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


def _trace(network: nn.Module) -> list[Call]:
    """Return every call of a module in a forward pass, in order of completion."""
    calls: list[Call] = []

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append((name, module, output))

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(functools.partial(record, name)))
        network(torch.empty(1, 3, _INPUT_PX, _INPUT_PX, device="meta"))
    return calls


def _is_head(module: nn.Module) -> bool:
    size = getattr(module, "out_features", getattr(module, "out_channels", None))
    return isinstance(module, nn.Linear | nn.Conv2d) and size == _NUM_CLASSES


def _last_map(calls: list[Call]) -> int:
    """Return the index of the last map (N, C, h, w) of more than one cell, before any pooling."""
    # The output of a block that ends in a pooling is pooled: the finer map is before it.
    pooled = {id(output) for _, module, output in calls if isinstance(module, _POOLING)}
    return max(
        number
        for number, (_, module, output) in enumerate(calls)
        if output.ndim == 4
        and output.shape[-2:].numel() > 1
        and id(output) not in pooled
        and not isinstance(module, _NO_CHANGE)
    )


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


TOO_COARSE = "too coarse to show anything; give "
# Networks of each family of torchvision, and the input sizes of those that differ from 224 px.
FAMILIES = """
    cnn cnn-bn efficientnet-b0 efficientnet_b2 alexnet convnext_tiny densenet121 googlenet
    inception_v3 maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18
    resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn
    vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet50_2
"""
INPUT_PX = {"efficientnet_b2": 288, "inception_v3": 299, "swin_v2_t": 256}


@pytest.mark.parametrize("name", FAMILIES.split())
def test_the_table_has_the_layers_that_a_trace_finds(name: str):
    arch, is_own = architecture(name), name.startswith("cnn")
    assert (arch.name, arch.input_px) == (name, None if is_own else INPUT_PX.get(name, 224))
    assert find_cam_and_head(arch.build) == (arch.cam_layer, arch.head, arch.closed_form)
    assert (arch.imagenet is None) == is_own


class Small(nn.Module):
    """A convolution, then ``after``, then pooling and a head."""

    def __init__(self, num_classes: int, *, after: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 8, stride=8)
        self.after = after
        self.fc = nn.Linear(6, num_classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.stem(x))
        return self.fc(x.mean(dim=(2, 3)) * self.scale)


@pytest.mark.parametrize(
    ("after", "scale", "expected"),
    [
        (nn.ReLU(), 1.0, ("after", "fc", True)),
        (nn.ReLU(), 2.0, ("after", "fc", False)),
        (nn.MaxPool2d(2), 1.0, ("stem", "fc", False)),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), 1.0, ("after.0", "fc", False)),
        (nn.Sequential(nn.ReLU(), nn.Dropout()), 1.0, ("after", "fc", True)),
        (nn.AdaptiveAvgPool2d(1), 1.0, ("stem", "fc", True)),
    ],
)
def test_a_trace_finds_the_last_map_before_any_pooling(
    after: nn.Module, scale: float, expected: tuple[str, str, bool]
):
    assert find_cam_and_head(lambda n: Small(n, after=after, scale=scale)) == expected


def test_a_name_may_have_dashes_or_underscores():
    for dashed, underscored in (
        ("efficientnet-b0", "efficientnet_b0"),
        ("cnn-bn", "cnn_bn"),
        ("squeezenet1-1", "squeezenet1_1"),
    ):
        assert architecture(dashed) is architecture(underscored)
    assert architecture("efficientnet_b0").name == "efficientnet-b0"
    assert list(ARCHITECTURES) == ["cnn", "cnn-bn", "resnet18", "resnet50", "efficientnet-b0"]


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision_networks_give_two_logits_in_both_modes(name: str):
    network = architecture(name).build(2)
    images = torch.rand(2, 3, 64, 64)
    assert network.train()(images).shape == (2, 2)
    assert network.eval()(images).shape == (2, 2)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "swin_t"])
def test_a_network_on_the_meta_device_has_shapes_and_draws_no_random_number(name: str):
    arch = architecture(name)
    before = torch.get_rng_state()
    network = build_on_meta(arch.build, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    expected = {name: value.shape for name, value in arch.build(2).state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("name", "input_px", "layer"),
    [
        ("cnn-bn", 50, None),
        ("cnn-bn", 50, "features.10"),
        ("resnet18", 64, "layer2.0.conv1"),
        ("resnet18", 75, "layer3"),
        # Called twice, first on a finer map.
        ("resnet50", 64, "layer4.0.relu"),
        ("convnext_tiny", 64, "features.1.0.block.6"),
    ],
)
def test_the_grid_is_that_of_the_output(name: str, input_px: int, layer: str | None):
    classifier = make_classifier(name, input_px=input_px)
    shapes: list[torch.Size] = []
    module = classifier.network.get_submodule(layer or classifier.arch.cam_layer)
    module.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with torch.inference_mode():
        classifier(random_patches(1))
    assert cam_grid(classifier.arch, input_px, layer) == shapes[-1][2:]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_default_size_is_fine_enough(name: str):
    arch = ARCHITECTURES[name]
    check_input_px(arch, arch.input_px or 50)
    check_cam_layer(arch, arch.input_px or 50)


def check(name: str, input_px: int | None = None, *layer: str | None) -> None:
    arch = architecture(name)
    if layer:
        check_cam_layer(arch, input_px, *layer)
    elif input_px:
        check_input_px(arch, input_px)


ATTENTION = "blocks.0.layers.0.layers.window_attention.attn_layer"
NO_MAP = "gives no feature map"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["vit_b_16"], "vit_b_16 has no convolutional feature map"),
        (["resnet81"], "did you mean resnet18 or"),
        (["mobilnet-v3-small"], "did you mean mobilenet_v3_small"),
        (["vgg"], "'vgg'; did you mean vgg"),
        (
            ["?"],
            r"'\?'; There are cnn, cnn-bn, resnet18, resnet50, efficientnet-b0 and torchvision",
        ),
        (["lraspp_mobilenet_v3_large"], "did you mean mobilenet_v3_large"),
        (["resnet18", 20], r"resnet18 cannot .* 20 px, .*--input-size \(224 px is its own\)"),
        (["inception_v3", 20], r"inception_v3 cannot work .*\(299 px is its own\)"),
        (["cnn", 8], r"cnn cannot work on images of 8 px, .* \(50 px is usual\)"),
        (["resnet18", 224, "layer5"], "no layer 'layer5'; did you mean layer4, layer3 or layer2"),
        (["resnet18", 224, "a\nb"], r"'a\\nb'; give --cam-layer layer4 \(7x7\), layer3 \(14x14\)"),
        (["resnet18", 224, ""], "has no layer ''"),
        (["resnet18", 224, "fc"], f"layer fc of resnet18 {NO_MAP} .*layer4"),
        # Four axes, but the channels are the last one.
        (["convnext_tiny", 64, "features.1.0.block.3"], NO_MAP),
        (["swin_t", 224, "features.5"], NO_MAP),
        (["maxvit_t", 224, ATTENTION], NO_MAP),  # accepts one image size only
        (["inception_v3", 20, None], "cannot work on images of 20 px; .*299 px is usual"),
        (["resnet18", 224, "avgpool"], f"CAM of 1x1 cells .* avgpool .*{TOO_COARSE}--cam-layer"),
        (["resnet18", 1, None], f"CAM of 1x1 .*{TOO_COARSE}--input-size 128 when training$"),
        (["cnn-bn", 24, None], f"CAM of 3x3 .*{TOO_COARSE}--input-size 32 .*features.16"),
    ],
)
def test_an_unusable_name_size_or_layer_is_refused_in_one_line(wrong: list, message: str):
    with pytest.raises(CheckpointError, match=message) as caught:
        check(*wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "inception_v3"])
def test_the_suggested_layers_exist_and_are_fine_enough(name: str):
    arch = architecture(name)
    with pytest.raises(CheckpointError) as caught:
        check_cam_layer(arch, 80)
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
        ("cnn-bn", None, architecture("cnn-bn").cam_layer),
        # No layer is fine enough; check_cam_layer refuses this one.
        ("resnet18", 1, "layer4"),
    ],
)
def test_the_default_layer_is_the_last_that_is_fine_enough(name, input_px, expected):
    assert default_cam_layer(architecture(name), input_px) == expected
