from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import make_classifier, random_patches
from wsi_idc.models.batch_norm import fuse_batch_norm, has_fused_batch_norm, unfold_batch_norm
from wsi_idc.models.cam import cam_extractor
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.pretrained import load_weights_file
from wsi_idc.models.registry import architecture

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "weights" / "mobilenet_v2_imagenet.pth"


def noise_patches(count: int) -> Tensor:
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.integers(0, 256, (count, 50, 50, 3), dtype=np.uint8))


def around(network: nn.Module, *, input_px: int | None = None) -> PatchClassifier:
    half = (0.5, 0.5, 0.5)
    arch = architecture("cnn-bn")
    return PatchClassifier(arch, network, input_px=input_px, mean=half, std=half).eval()


@pytest.fixture(params=[1.0, 1 - 1e-5])
def folded_network(request: pytest.FixtureRequest) -> PatchClassifier:
    """Return a cnn-bn whose convolutions hold the scale of their batch norms."""
    torch.manual_seed(0)
    network = architecture("cnn-bn").build(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.constant_(module.running_var, request.param)
    return around(network)


def test_folded_batch_norms_are_told_from_others(folded_network: PatchClassifier):
    assert has_fused_batch_norm(folded_network.network)
    assert not has_fused_batch_norm(architecture("cnn-bn").build(2))  # fresh
    assert not has_fused_batch_norm(architecture("cnn").build(2))  # has none
    (*_, last) = (m for m in folded_network.network.modules() if isinstance(m, nn.BatchNorm2d))
    last.running_mean[3] = 0.1
    assert not has_fused_batch_norm(folded_network.network)


def test_one_without_statistics_is_not_folded():
    assert not has_fused_batch_norm(nn.BatchNorm2d(2, track_running_stats=False))
    assert not has_fused_batch_norm(nn.BatchNorm2d(2, affine=False))


def train_mode_logits(classifier: PatchClassifier, patches: Tensor) -> Tensor:
    for module in classifier.modules():
        module.train(not isinstance(module, nn.Dropout))
    with torch.no_grad():
        return classifier(patches)


def test_unfolding_keeps_the_function_in_both_modes(folded_network: PatchClassifier):
    patches = noise_patches(80)  # more than one batch, and a part
    with torch.no_grad():
        expected = folded_network(patches)
        unfold_batch_norm(folded_network, patches)
        found = folded_network(patches)
    assert not has_fused_batch_norm(folded_network.network)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    trained = train_mode_logits(folded_network, patches)
    torch.testing.assert_close(trained, expected, rtol=1e-3, atol=1e-3)


def test_train_mode_would_lose_the_function_without(folded_network: PatchClassifier):
    patches = noise_patches(80)
    with torch.no_grad():
        expected = folded_network(patches)
    assert (train_mode_logits(folded_network, patches) - expected).abs().max() > 0.1


def test_a_channel_that_does_not_vary_stays_finite_and_itself(folded_network: PatchClassifier):
    first = folded_network.network.features[0]
    with torch.no_grad():
        first.weight[5] = 0
        folded_network.network.features[1].bias[5] = 0.75
    patches = noise_patches(20)
    with torch.no_grad():
        expected = folded_network(patches)
        unfold_batch_norm(folded_network, patches)
        found = folded_network(patches)
    norm = folded_network.network.features[1]
    assert norm.running_var[5].item() == 0
    assert norm.weight[5].item() == pytest.approx(norm.eps**0.5, rel=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        train_mode_logits(folded_network, patches), expected, rtol=1e-3, atol=1e-3
    )


def test_modes_and_hooks_are_given_back(folded_network: PatchClassifier):
    folded_network.train()
    folded_network.network.pool.eval()
    unfold_batch_norm(folded_network, noise_patches(2))
    assert folded_network.training
    assert folded_network.network.features.training
    assert not folded_network.network.pool.training
    assert not any(module._forward_pre_hooks for module in folded_network.modules())


@pytest.mark.real
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"there are no real weights at {WEIGHTS}")
def test_real_folded_weights_unfold():
    arch = architecture("mobilenet_v2")
    torch.manual_seed(0)
    network = arch.build(2)
    assert load_weights_file(network, arch, WEIGHTS) is None
    assert has_fused_batch_norm(network)
    classifier = around(network, input_px=96)
    patches = noise_patches(64)
    patches //= torch.arange(1, 65, dtype=torch.uint8).view(-1, 1, 1, 1)  # of many contrasts
    with torch.no_grad():
        expected = classifier(patches)
        unfold_batch_norm(classifier, patches)
        found = classifier(patches)
    scale = expected.std().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)
    trained = train_mode_logits(classifier, patches)
    torch.testing.assert_close(trained, expected, rtol=1e-2, atol=1e-2 * scale)


def lived(name: str, *, input_px: int | None = None) -> PatchClassifier:
    """Return a classifier whose batch norms have seen patches, so that none is the identity."""
    classifier = make_classifier(name, input_px=input_px)
    torch.manual_seed(1)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        classifier.train()(random_patches(24))
    return classifier.eval()


def num_norms(classifier: PatchClassifier) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in classifier.modules())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("cnn", 0, 0),
        ("cnn-bn", 7, 0),
        ("resnet18", 20, 0),
        ("efficientnet-b0", 49, 0),
        ("mobilenet_v3_small", 34, 0),
        # Its norms stand before the convolutions, but for those inside the layers.
        ("densenet121", 121, 62),
    ],
)
def test_norms_go_into_convolutions_and_nothing_changes(name: str, before: int, after: int):
    classifier = lived(name, input_px=None if name.startswith("cnn") else 64)
    ready = fuse_batch_norm(classifier)
    assert (num_norms(classifier), num_norms(ready)) == (before, after)
    patches = random_patches(4)
    with torch.inference_mode():
        expected, found = classifier(patches), ready(patches)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [key for key, _ in ready.named_modules()] == [k for k, _ in classifier.named_modules()]


def test_the_original_stays_as_it_is():
    classifier = lived("cnn-bn").train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    ready = fuse_batch_norm(classifier)
    assert classifier.training and not ready.training
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.5"])
def test_a_cam_of_any_layer_is_what_it_was(layer: str):
    # A convolution, its batch norm, and what the next one's batch norm takes.
    classifier, patches = lived("cnn-bn"), random_patches(3)
    found = []
    for network in (classifier, fuse_batch_norm(classifier, keep=layer)):
        with cam_extractor(network, layer=layer) as extract:
            found.append(extract(patches)[1].numpy())
    assert found[0].max() > 0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-6)


def test_a_network_that_cannot_be_traced_is_left_as_it_is():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x))
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    classifier = lived("cnn-bn")
    odd = PatchClassifier(classifier.arch, Odd(), input_px=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    ready = fuse_batch_norm(odd)
    assert num_norms(ready) == 1


def test_a_convolution_used_twice_keeps_its_norms():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(self.conv(x))).mean((2, 3))

    arch = lived("cnn-bn").arch
    twice = PatchClassifier(arch, Twice(), input_px=None, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    twice.network.norm.running_mean.fill_(0.3)
    ready = fuse_batch_norm(twice)
    patches = random_patches(2)
    with torch.inference_mode():
        assert torch.equal(ready(patches), twice(patches))
