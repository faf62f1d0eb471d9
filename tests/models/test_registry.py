import pytest
import torch
from torch import Tensor, nn

from tests.models.tracing import Layers, find_cam_and_head
from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import ARCHITECTURES, architecture, build_on_meta

# Name, last feature map, head, closed form and input size: one of each family of torchvision.
FAMILIES = [
    ("cnn", "features", "classifier", True, None),
    ("cnn-bn", "features", "classifier", True, None),
    ("efficientnet-b0", "features", "classifier.1", True, 224),
    ("efficientnet_b2", "features", "classifier.1", True, 288),
    ("alexnet", "features.11", "classifier.6", False, 224),
    ("convnext_tiny", "features", "classifier.2", False, 224),
    ("densenet121", "features", "classifier", True, 224),
    ("googlenet", "inception5b", "fc", True, 224),
    ("inception_v3", "Mixed_7c", "fc", True, 299),
    ("maxvit_t", "blocks.3", "classifier.5", False, 224),
    ("mnasnet0_5", "layers", "classifier.1", True, 224),
    ("mobilenet_v2", "features", "classifier.1", True, 224),
    ("mobilenet_v3_small", "features", "classifier.3", False, 224),
    ("regnet_y_400mf", "trunk_output", "fc", True, 224),
    ("resnet18", "layer4", "fc", True, 224),
    ("resnet50", "layer4", "fc", True, 224),
    ("resnext50_32x4d", "layer4", "fc", True, 224),
    ("shufflenet_v2_x0_5", "conv5", "fc", True, 224),
    ("squeezenet1_1", "features", "classifier.1", False, 224),
    ("swin_t", "permute", "head", True, 224),
    ("swin_v2_t", "permute", "head", True, 256),
    *(
        (f"vgg{depth}{suffix}", f"features.{last}", "classifier.6", False, 224)
        for depth, lasts in {11: (19, 27), 13: (23, 33), 16: (29, 42), 19: (35, 51)}.items()
        for suffix, last in zip(("", "_bn"), lasts, strict=True)
    ),
    ("wide_resnet50_2", "layer4", "fc", True, 224),
]


@pytest.mark.parametrize(("name", "cam_layer", "head", "closed_form", "input_px"), FAMILIES)
def test_the_table_has_the_layers_that_a_trace_finds(
    name: str, cam_layer: str, head: str, closed_form: bool, input_px: int | None
):
    arch = architecture(name)
    assert (arch.name, arch.input_px) == (name, input_px)
    expected = Layers(cam_layer, head, closed_form)
    assert Layers(arch.cam_layer, arch.head, arch.closed_form) == expected
    assert find_cam_and_head(arch.build) == expected
    assert (arch.imagenet is None) == name.startswith("cnn")


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
        (nn.ReLU(), 1.0, Layers("after", "fc", True)),
        (nn.ReLU(), 2.0, Layers("after", "fc", False)),
        (nn.MaxPool2d(2), 1.0, Layers("stem", "fc", False)),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), 1.0, Layers("after.0", "fc", False)),
        (nn.Sequential(nn.ReLU(), nn.Dropout()), 1.0, Layers("after", "fc", True)),
        (nn.AdaptiveAvgPool2d(1), 1.0, Layers("stem", "fc", True)),
    ],
)
def test_a_trace_finds_the_last_map_before_any_pooling(
    after: nn.Module, scale: float, expected: Layers
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
    ("name", "message"),
    [
        ("vit_b_16", "vit_b_16 has no convolutional feature map"),
        ("resnet81", "did you mean resnet18 or"),
        ("mobilnet-v3-small", "did you mean mobilenet_v3_small"),
        ("vgg", "'vgg'; did you mean vgg"),
        (
            "?",
            r"'\?'; There are cnn, cnn-bn, resnet18, resnet50, efficientnet-b0 and torchvision's",
        ),
        ("lraspp_mobilenet_v3_large", "did you mean mobilenet_v3_large"),
    ],
)
def test_an_unusable_name_is_refused_in_one_line(name: str, message: str):
    with pytest.raises(CheckpointError, match=message) as caught:
        architecture(name)
    assert "\n" not in str(caught.value)
