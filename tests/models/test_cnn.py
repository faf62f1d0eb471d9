import pytest
import torch

from wsi_idc.models.cnn import PatchCnn


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_patch_of_50_px_ends_in_a_6x6_feature_map(batch_norm: bool):
    network = PatchCnn(num_classes=2, batch_norm=batch_norm)
    patches = torch.rand(3, 3, 50, 50)
    assert network.features(patches).shape == (3, 192, 6, 6)
    assert network(patches).shape == (3, 2)


def test_a_blank_patch_gives_a_flat_feature_map_up_to_its_edge():
    network = PatchCnn(num_classes=2, batch_norm=True).eval()
    features = network.features(torch.full((1, 3, 50, 50), 0.7))
    assert torch.allclose(features, features[:, :, :1, :1].expand_as(features), atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_pads_and_learns_the_same():
    torch.manual_seed(0)
    network = PatchCnn(num_classes=2, batch_norm=False).eval()
    x = torch.rand(2, 3, 50, 50).to(memory_format=torch.channels_last)
    results = []
    for model in (network, torch.compile(network, backend="aot_eager")):
        logits = model(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), network.features[0].weight)
        results.append((logits.detach(), gradient))
    torch.testing.assert_close(results[1], results[0])
