import pytest
import torch

from tests.classifiers import make_classifier, random_patches
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import (
    ARCHITECTURES,
    MIN_SIDE,
    architecture,
    cam_grid,
    check_cam_layer,
    check_input_px,
    default_cam_layer,
)

TOO_COARSE = "too coarse to show anything; give "


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


@pytest.mark.parametrize(
    ("name", "input_px", "message"),
    [
        ("resnet18", 20, r"resnet18 cannot .* 20 px, .*--input-size \(224 px is its own\)"),
        ("inception_v3", 20, r"inception_v3 cannot work .*\(299 px is its own\)"),
        ("cnn", 8, r"cnn cannot work on images of 8 px, .* \(50 px is usual\)"),
    ],
)
def test_an_input_size_without_a_map_is_refused(name: str, input_px: int, message: str):
    with pytest.raises(CheckpointError, match=message):
        check_input_px(architecture(name), input_px)


@pytest.mark.parametrize(
    ("name", "input_px", "layer", "message"),
    [
        ("resnet18", 224, "layer5", "has no layer 'layer5'; did you mean layer4, layer3 or layer2"),
        (
            "resnet18",
            224,
            "here\nthere",
            r"no layer 'here\\nthere'; give --cam-layer layer4 \(7x7\), layer3 \(14x14\) or",
        ),
        ("resnet18", 224, "", "has no layer ''"),
        ("resnet18", 224, "fc", "layer fc of resnet18 gives no feature map .*layer4"),
        # Four axes, but the channels are the last one.
        ("convnext_tiny", 64, "features.1.0.block.3", "gives no feature map"),
        ("swin_t", 224, "features.5", "gives no feature map"),
        # It accepts one image size only.
        ("maxvit_t", 224, "blocks.0.layers.0.layers.window_attention.attn_layer", "no feature map"),
        ("inception_v3", 20, None, "cannot work on images of 20 px; .*299 px is usual"),
        (
            "resnet18",
            224,
            "avgpool",
            f"CAM of 1x1 cells at layer avgpool .*{TOO_COARSE}--cam-layer",
        ),
        ("resnet18", 1, None, f"CAM of 1x1 .*{TOO_COARSE}--input-size 128 when training$"),
        ("cnn-bn", 24, None, f"CAM of 3x3 .*{TOO_COARSE}--input-size 32 .*features.16"),
    ],
)
def test_a_layer_without_a_fine_cam_is_refused_in_one_line(
    name: str, input_px: int, layer: str | None, message: str
):
    with pytest.raises(CheckpointError, match=message) as caught:
        check_cam_layer(architecture(name), input_px, layer)
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
