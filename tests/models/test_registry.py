from pathlib import Path

import pytest
import torch
from torch import nn

from wsi_idc.errors import CheckpointError
from wsi_idc.models.registry import (
    ARCHITECTURES,
    architecture,
    fetch_imagenet,
    load_imagenet,
    weights_file,
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_named_layers_are_where_the_cam_comes_from(name: str):
    arch = architecture(name)
    network = arch.build(2).eval()
    assert isinstance(network.get_submodule(arch.cam_layer), nn.Module)
    head = network.get_submodule(arch.head)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 2


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(CheckpointError, match="'vgg'; there are cnn, cnn-bn, resnet18"):
        architecture("vgg")


@pytest.fixture
def resnet_weights() -> dict[str, torch.Tensor]:
    """Put the weights of a random ResNet18 with 1000 classes where torchvision would."""
    arch = architecture("resnet18")
    torch.manual_seed(3)
    state = arch.build(1000).state_dict()
    weights_file(arch).parent.mkdir(parents=True)
    torch.save(state, weights_file(arch))
    return state


def test_weights_from_the_cache_fill_all_but_the_head(resnet_weights: dict[str, torch.Tensor]):
    arch = architecture("resnet18")
    network = arch.build(2)
    head = network.fc.weight.clone()
    load_imagenet(network, arch)
    assert torch.equal(network.conv1.weight, resnet_weights["conv1.weight"])
    assert torch.equal(network.layer4[1].bn2.bias, resnet_weights["layer4.1.bn2.bias"])
    assert torch.equal(network.fc.weight, head)


def test_missing_weights_name_the_file_and_the_command():
    arch = architecture("resnet50")
    with pytest.raises(CheckpointError) as caught:
        load_imagenet(arch.build(2), arch)
    assert "resnet50-11ad3fa6.pth" in str(caught.value)
    assert "wsi-idc fetch-weights resnet50" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken zip"])
def test_damaged_weights_are_refused(content: bytes):
    arch = architecture("resnet18")
    weights_file(arch).parent.mkdir(parents=True)
    weights_file(arch).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged weights"):
        load_imagenet(arch.build(2), arch)


def test_weights_of_another_model_are_refused(resnet_weights: dict[str, torch.Tensor]):
    small, large = architecture("resnet18"), architecture("resnet50")
    Path(weights_file(small)).rename(weights_file(large))
    with pytest.raises(CheckpointError, match="weights"):
        load_imagenet(large.build(2), large)


def test_a_model_from_scratch_has_nothing_to_fetch():
    with pytest.raises(CheckpointError, match="trained from scratch"):
        fetch_imagenet(architecture("cnn"))
