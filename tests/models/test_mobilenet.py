from pathlib import Path

import pytest
import torch
import torchvision

from wsi_idc.core.errors import CheckpointError
from wsi_idc.models.mobilenet import MobileNetV2S16
from wsi_idc.models.pretrained import load_weights_file
from wsi_idc.models.registry import architecture


def test_a_cell_of_the_last_feature_map_has_16_px():
    network = MobileNetV2S16(2)
    for side, cells in ((96, 6), (112, 7), (50, 4)):
        assert network.features(torch.rand(2, 3, side, side)).shape == (2, 96, cells, cells)


def test_a_blank_patch_gives_a_flat_feature_map_up_to_its_edge():
    network = MobileNetV2S16(2).eval()
    features = network.features(torch.full((1, 3, 96, 96), 0.7))
    torch.testing.assert_close(features, features[..., :1, :1].expand_as(features))


def test_the_rows_of_the_head_are_opposite_before_and_after_a_training_step():
    network = MobileNetV2S16(2).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    logits = network(torch.rand(4, 3, 96, 96))
    assert (logits[:, 0] - logits[:, 1]).unique().numel() == 1
    torch.nn.functional.cross_entropy(logits, torch.arange(4) % 2).backward()
    optimizer.step()
    first, second = network.classifier[1].weight
    assert first.abs().sum() > 0
    torch.testing.assert_close(first, -second)


def test_weights_of_torchvision_set_all_layers_but_the_head(tmp_path: Path):
    torch.manual_seed(1)
    weights = torchvision.models.mobilenet_v2().state_dict()
    torch.save(weights, tmp_path / "mobilenet.pth")
    arch = architecture("mobilenet-v2-s16")
    network = arch.build(2)
    assert load_weights_file(network, arch, tmp_path / "mobilenet.pth") is None
    state = network.state_dict()
    assert state.keys() <= weights.keys()
    torch.save({**weights, "features.19.bias": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"unknown features\.19\.bias"):
        load_weights_file(network, arch, tmp_path / "other.pth")
    for name, value in state.items():
        assert name.startswith("classifier") or torch.equal(value, weights[name])
