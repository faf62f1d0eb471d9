import numpy as np
import pytest
import torch
from torch import nn

from tests.classifiers import make_classifier, random_patches
from wsi_idc.models.cam import cam_extractor
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.folded import folded


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
    ready = folded(classifier)
    assert (num_norms(classifier), num_norms(ready)) == (before, after)
    patches = random_patches(4)
    with torch.inference_mode():
        expected, found = classifier(patches), ready(patches)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [key for key, _ in ready.named_modules()] == [k for k, _ in classifier.named_modules()]


def test_the_original_stays_as_it_is():
    classifier = lived("cnn-bn").train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    ready = folded(classifier)
    assert classifier.training and not ready.training
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.5"])
def test_a_cam_of_any_layer_is_what_it_was(layer: str):
    # A convolution, its batch norm, and what the next one's batch norm takes.
    classifier, patches = lived("cnn-bn"), random_patches(3)
    found = []
    for network in (classifier, folded(classifier, keep=layer)):
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
    ready = folded(odd)
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
    ready = folded(twice)
    patches = random_patches(2)
    with torch.inference_mode():
        assert torch.equal(ready(patches), twice(patches))
