import copy
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


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def logits(classifier: PatchClassifier, patches: Tensor) -> Tensor:
    return classifier(patches)


def train_mode_logits(classifier: PatchClassifier, patches: Tensor) -> Tensor:
    for module in classifier.modules():
        module.train(not isinstance(module, nn.Dropout))
    return logits(classifier, patches)


@pytest.fixture(params=[1.0, 1 - 1e-5])
def folded(request: pytest.FixtureRequest) -> PatchClassifier:
    """Return a cnn-bn whose convolutions contain the scale of their batch norms."""
    classifier = make_classifier("cnn-bn")
    for norm in batch_norms(classifier):
        nn.init.normal_(norm.bias)
        nn.init.constant_(norm.running_var, request.param)
    return classifier


def test_fused_batch_norms_are_recognized(folded: PatchClassifier):
    assert has_fused_batch_norm(folded.network)
    batch_norms(folded)[-1].running_mean[3] = 0.1
    for network in (
        folded.network,
        architecture("cnn-bn").build(2),  # new
        architecture("cnn").build(2),  # without batch norms
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.BatchNorm2d(2, affine=False),
    ):
        assert not has_fused_batch_norm(network)


def test_unfolding_keeps_the_function_in_both_modes(folded: PatchClassifier):
    patches = random_patches(80)  # two batches and a part of one
    expected = logits(folded, patches)
    assert (train_mode_logits(copy.deepcopy(folded), patches) - expected).abs().max() > 0.1
    folded.train()
    folded.network.pool.eval()
    unfold_batch_norm(folded, patches)
    modes = {name: module.training for name, module in folded.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["network.pool"]
    assert not any(module._forward_pre_hooks for module in folded.modules())
    assert not has_fused_batch_norm(folded.network)
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(logits(folded.eval(), patches), expected, rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(train_mode_logits(folded, patches), expected, rtol=1e-3, atol=1e-3)


def test_a_channel_that_does_not_vary_stays_finite(folded: PatchClassifier):
    convolution, norm = folded.network.features[0], folded.network.features[1]
    with torch.no_grad():
        convolution.weight[5] = 0
        norm.bias[5] = 0.75
    patches = random_patches(20)
    expected = logits(folded, patches)
    unfold_batch_norm(folded, patches)
    assert norm.running_var[5].item() == 0
    assert norm.weight[5].item() == pytest.approx(norm.eps**0.5, rel=1e-4)
    torch.testing.assert_close(logits(folded, patches), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(train_mode_logits(folded, patches), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.real
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"there are no real weights at {WEIGHTS}")
def test_real_folded_weights_are_unfolded():
    classifier = make_classifier("mobilenet_v2", input_px=96)
    assert load_weights_file(classifier.network, classifier.arch, WEIGHTS) is None
    assert has_fused_batch_norm(classifier.network)
    patches = random_patches(64)
    patches //= torch.arange(1, 65, dtype=torch.uint8).view(-1, 1, 1, 1)  # of many contrasts
    expected = logits(classifier, patches)
    unfold_batch_norm(classifier, patches)
    scale = expected.std().item()
    for compute, tolerance in ((logits, 1e-4), (train_mode_logits, 1e-2)):
        actual = compute(classifier, patches)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)


def used(name: str, *, input_px: int | None = None) -> PatchClassifier:
    """Return a classifier whose batch norms have statistics of patches and other weights."""
    classifier = make_classifier(name, input_px=input_px)
    torch.manual_seed(1)
    for norm in batch_norms(classifier):
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    logits(classifier.train(), random_patches(24))
    return classifier.eval()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        *(("cnn", 0, 0), ("cnn-bn", 7, 0), ("resnet18", 20, 0)),
        *(("efficientnet-b0", 49, 0), ("mobilenet_v3_small", 34, 0)),
        # Its batch norms are before the convolutions, except those inside the layers.
        ("densenet121", 121, 62),
    ],
)
def test_fusing_changes_neither_logits_nor_names(name: str, before: int, after: int):
    classifier = used(name, input_px=None if name.startswith("cnn") else 64).train()
    state = {key: value.clone() for key, value in classifier.state_dict().items()}
    fused = fuse_batch_norm(classifier)
    assert classifier.training and not fused.training
    assert all(torch.equal(value, state[key]) for key, value in classifier.state_dict().items())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert (len(batch_norms(classifier)), len(batch_norms(fused))) == (before, after)
    patches = random_patches(4)
    expected = logits(classifier.eval(), patches)
    torch.testing.assert_close(logits(fused, patches), expected, atol=1e-4, rtol=1e-4)
    assert [key for key, _ in fused.named_modules()] == [k for k, _ in classifier.named_modules()]


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.5"])
def test_fusing_keeps_the_cam_of_a_layer(layer: str):
    # A convolution, its batch norm, and the input of the next batch norm.
    classifier, patches, cams = used("cnn-bn"), random_patches(3), []
    for model in (classifier, fuse_batch_norm(classifier, keep=layer)):
        with cam_extractor(model, layer=layer) as extract:
            cams.append(extract(patches)[1].numpy())
    assert cams[0].max() > 0
    np.testing.assert_allclose(cams[1], cams[0], rtol=1e-3, atol=1e-6)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class UsedTwice(Untraceable):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize("network", [Untraceable(), UsedTwice()])
def test_a_network_that_cannot_be_fused_stays_the_same(network: nn.Module):
    network.norm.running_mean.fill_(0.3)
    classifier, patches = make_classifier("cnn-bn", network=network), random_patches(2)
    fused = fuse_batch_norm(classifier)
    assert len(batch_norms(fused)) == 1
    assert torch.equal(logits(fused, patches), logits(classifier, patches))
