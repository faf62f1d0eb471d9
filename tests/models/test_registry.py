import pytest
import torch
from torch import nn

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.registry import ARCHITECTURES, architecture


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_named_layers_are_where_the_cam_comes_from(name: str):
    arch = architecture(name)
    network = arch.build(2).eval()
    assert isinstance(network.get_submodule(arch.cam_layer), nn.Module)
    head = network.get_submodule(arch.head)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 2


@pytest.mark.parametrize(
    ("name", "cam_layer", "head", "closed_form", "input_px"),
    [
        ("mobilenet_v3_small", "features", "classifier.3", False, 224),
        ("mobilenet_v2", "features", "classifier.1", True, 224),
        ("densenet121", "features", "classifier", True, 224),
        ("convnext_tiny", "features", "classifier.2", False, 224),
        ("vgg16", "features.29", "classifier.6", False, 224),
        ("squeezenet1_1", "features", "classifier.1", False, 224),
        ("googlenet", "inception5b", "fc", True, 224),
        ("inception_v3", "Mixed_7c", "fc", True, 299),
        ("efficientnet_b2", "features", "classifier.1", True, 288),
        ("regnet_y_400mf", "trunk_output", "fc", True, 224),
        ("swin_t", "permute", "head", True, 224),
    ],
)
def test_torchvisions_classifiers_are_known(
    name: str, cam_layer: str, head: str, closed_form: bool, input_px: int
):
    arch = architecture(name)
    assert (arch.name, arch.cam_layer, arch.head) == (name, cam_layer, head)
    assert (arch.closed_form, arch.input_px) == (closed_form, input_px)
    assert arch.imagenet is not None


def test_a_model_has_one_name_however_it_is_spelled():
    assert architecture("efficientnet_b0") is architecture("efficientnet-b0")
    assert architecture("efficientnet_b0").name == "efficientnet-b0"
    assert architecture("cnn_bn") is architecture("cnn-bn")
    assert architecture("squeezenet1-1") is architecture("squeezenet1_1")


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_network_of_torchvision_gives_two_logits_in_training_too(name: str):
    arch = architecture(name)
    network = arch.build(2)
    images = torch.rand(2, 3, 64, 64)
    assert network.train()(images).shape == (2, 2)
    assert network.eval()(images).shape == (2, 2)


def test_a_transformer_of_tokens_is_refused():
    with pytest.raises(CheckpointError, match="vit_b_16 has no convolutional feature map"):
        architecture("vit_b_16")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
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
def test_an_unknown_name_is_answered_with_near_ones(name: str, hint: str):
    with pytest.raises(CheckpointError, match=hint) as caught:
        architecture(name)
    assert "\n" not in str(caught.value)
