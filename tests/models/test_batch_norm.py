from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi_idc.models.batch_norm import is_folded, unfold_batch_norm
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.pretrained import load_weights_file
from wsi_idc.models.registry import architecture

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "weights" / "mobilenet_v2_imagenet.pth"


def random_patches(count: int) -> Tensor:
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.integers(0, 256, (count, 50, 50, 3), dtype=np.uint8))


def around(network: nn.Module, *, input_px: int | None = None) -> PatchClassifier:
    half = (0.5, 0.5, 0.5)
    arch = architecture("cnn-bn")
    return PatchClassifier(arch, network, input_px=input_px, mean=half, std=half).eval()


@pytest.fixture(params=[1.0, 1 - 1e-5])
def folded(request: pytest.FixtureRequest) -> PatchClassifier:
    """Return a cnn-bn whose convolutions hold the scale of their batch norms."""
    torch.manual_seed(0)
    network = architecture("cnn-bn").build(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.constant_(module.running_var, request.param)
    return around(network)


def test_folded_batch_norms_are_told_from_others(folded: PatchClassifier):
    assert is_folded(folded.network)
    assert not is_folded(architecture("cnn-bn").build(2))  # fresh
    assert not is_folded(architecture("cnn").build(2))  # has none
    (*_, last) = (m for m in folded.network.modules() if isinstance(m, nn.BatchNorm2d))
    last.running_mean[3] = 0.1
    assert not is_folded(folded.network)


def test_one_without_statistics_is_not_folded():
    assert not is_folded(nn.BatchNorm2d(2, track_running_stats=False))
    assert not is_folded(nn.BatchNorm2d(2, affine=False))


def train_mode_logits(classifier: PatchClassifier, patches: Tensor) -> Tensor:
    for module in classifier.modules():
        module.train(not isinstance(module, nn.Dropout))
    with torch.no_grad():
        return classifier(patches)


def test_unfolding_keeps_the_function_in_both_modes(folded: PatchClassifier):
    patches = random_patches(80)  # more than one batch, and a part
    with torch.no_grad():
        expected = folded(patches)
        unfold_batch_norm(folded, patches)
        found = folded(patches)
    assert not is_folded(folded.network)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    trained = train_mode_logits(folded, patches)
    torch.testing.assert_close(trained, expected, rtol=1e-3, atol=1e-3)


def test_train_mode_would_lose_the_function_without(folded: PatchClassifier):
    patches = random_patches(80)
    with torch.no_grad():
        expected = folded(patches)
    assert (train_mode_logits(folded, patches) - expected).abs().max() > 0.1


def test_a_channel_that_does_not_vary_stays_finite_and_itself(folded: PatchClassifier):
    first = folded.network.features[0]
    with torch.no_grad():
        first.weight[5] = 0
        folded.network.features[1].bias[5] = 0.75
    patches = random_patches(20)
    with torch.no_grad():
        expected = folded(patches)
        unfold_batch_norm(folded, patches)
        found = folded(patches)
    norm = folded.network.features[1]
    assert norm.running_var[5].item() == 0
    assert norm.weight[5].item() == pytest.approx(norm.eps**0.5, rel=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(train_mode_logits(folded, patches), expected, rtol=1e-3, atol=1e-3)


def test_modes_and_hooks_are_given_back(folded: PatchClassifier):
    folded.train()
    folded.network.pool.eval()
    unfold_batch_norm(folded, random_patches(2))
    assert folded.training
    assert folded.network.features.training
    assert not folded.network.pool.training
    assert not any(module._forward_pre_hooks for module in folded.modules())


@pytest.mark.real
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"there are no real weights at {WEIGHTS}")
def test_real_folded_weights_unfold():
    arch = architecture("mobilenet_v2")
    torch.manual_seed(0)
    network = arch.build(2)
    assert load_weights_file(network, arch, WEIGHTS) is None
    assert is_folded(network)
    classifier = around(network, input_px=96)
    patches = random_patches(64)
    patches //= torch.arange(1, 65, dtype=torch.uint8).view(-1, 1, 1, 1)  # of many contrasts
    with torch.no_grad():
        expected = classifier(patches)
        unfold_batch_norm(classifier, patches)
        found = classifier(patches)
    scale = expected.std().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)
    trained = train_mode_logits(classifier, patches)
    torch.testing.assert_close(trained, expected, rtol=1e-2, atol=1e-2 * scale)
