import numpy as np
import pytest
import torch
from torch import nn
from torchcam.methods import GradCAM

from wsi_idc.models.classifier import IDC, PatchClassifier, logits_and_cam
from wsi_idc.models.registry import architecture


def make(name: str, *, input_px: int | None = None) -> PatchClassifier:
    torch.manual_seed(0)
    arch = architecture(name)
    network = arch.build(2)
    mean, std = (0.8, 0.6, 0.7), (0.2, 0.25, 0.2)
    return PatchClassifier(arch, network, input_px=input_px, mean=mean, std=std).eval()


def random_patches(count: int) -> torch.Tensor:
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.integers(0, 256, (count, 50, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "input_px"),
    [("cnn", None), ("cnn-bn", None), ("resnet18", 128), ("efficientnet-b0", 128)],
)
def test_the_closed_form_is_what_torchcam_computes_by_gradients(name: str, input_px: int | None):
    classifier = make(name, input_px=input_px)
    patches = random_patches(4)
    with torch.inference_mode():
        logits, cam = logits_and_cam(classifier, patches)
    with GradCAM(classifier.network, target_layer=classifier.arch.cam_layer) as extractor:
        scores = classifier.network(classifier.preprocess(patches).requires_grad_())
        expected = extractor(class_idx=IDC, scores=scores, normalized=False)[0]
    assert torch.allclose(logits, scores, atol=1e-5)
    assert cam.shape == expected.shape
    assert cam.max() > 0
    assert (cam - expected).abs().max() / expected.abs().max() < 1e-4


def test_preprocessing_scales_shifts_and_moves_the_channels():
    classifier = make("cnn")
    patches = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    patches[0, 3, 5] = torch.tensor([255, 51, 0], dtype=torch.uint8)
    images = classifier.preprocess(patches)
    assert images.shape == (1, 3, 50, 50)
    expected = [(1 - 0.8) / 0.2, (0.2 - 0.6) / 0.25, (0 - 0.7) / 0.2]
    assert images[0, :, 3, 5].tolist() == pytest.approx(expected, rel=1e-5)


def test_preprocessing_resizes_where_the_model_asks_for_it():
    images = make("resnet18", input_px=96).preprocess(random_patches(2))
    assert images.shape == (2, 3, 96, 96)


def test_no_hook_is_left_when_the_network_raises():
    classifier = make("cnn")
    with pytest.raises(RuntimeError):
        logits_and_cam(classifier, torch.zeros(1, 50, 50, 4, dtype=torch.uint8))
    layer: nn.Module = classifier.network.get_submodule("features")
    assert not layer._forward_hooks
