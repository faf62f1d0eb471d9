from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchcam.methods import GradCAM

from wsi_idc.models.cam import logits_and_cam
from wsi_idc.models.classifier import IDC, PatchClassifier, to_images
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
    ("name", "input_px", "closed_form"),
    [
        ("cnn", None, True),
        ("cnn-bn", None, True),
        ("resnet18", 128, True),
        ("efficientnet-b0", 128, True),
        ("densenet121", 64, True),
        ("mobilenet_v3_small", 128, False),
        ("squeezenet1_1", 64, False),
        ("convnext_tiny", 64, False),
    ],
)
def test_the_cam_is_what_torchcam_computes(name: str, input_px: int | None, closed_form: bool):
    classifier = make(name, input_px=input_px)
    assert classifier.arch.closed_form == closed_form
    patches = random_patches(4)
    with torch.inference_mode():
        logits, cam = logits_and_cam(classifier, patches)
    with GradCAM(classifier.network, target_layer=classifier.arch.cam_layer) as extractor:
        scores = classifier.network(classifier.preprocess(to_images(patches)).requires_grad_())
        expected = extractor(class_idx=IDC, scores=scores, normalized=False)[0]
    assert torch.allclose(logits, scores, atol=1e-5)
    assert cam.shape == expected.shape
    assert cam.max() > 0
    assert (cam - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize(("name", "input_px"), [("cnn-bn", None), ("resnet18", 64)])
def test_the_gradient_gives_the_closed_form(name: str, input_px: int | None):
    classifier = make(name, input_px=input_px)
    patches = random_patches(4)
    logits, cam = logits_and_cam(classifier, patches)
    classifier.arch = replace(classifier.arch, closed_form=False)
    same_logits, same_cam = logits_and_cam(classifier, patches)
    assert torch.equal(same_logits, logits)
    assert (same_cam - cam).abs().max() / cam.max() < 1e-6


@pytest.fixture
def by_gradient() -> PatchClassifier:
    classifier = make("mobilenet_v3_small", input_px=64)
    assert not classifier.arch.closed_form
    return classifier


def test_the_gradient_leaves_nothing_behind(by_gradient: PatchClassifier):
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            before = torch.is_grad_enabled()
            logits, cam = logits_and_cam(by_gradient, random_patches(2))
            assert torch.is_grad_enabled() == before
        assert not logits.requires_grad
        assert not cam.requires_grad
    assert all(parameter.grad is None for parameter in by_gradient.parameters())
    assert not any(module._forward_hooks for module in by_gradient.modules())


def test_the_gradient_works_on_what_inference_mode_made(by_gradient: PatchClassifier):
    patches = random_patches(3)
    expected_logits, expected_cam = logits_and_cam(by_gradient, patches)
    by_gradient.requires_grad_(False)
    with torch.inference_mode():
        logits, cam = logits_and_cam(by_gradient, patches.clone())
        assert torch.is_inference_mode_enabled()
    assert torch.equal(logits, expected_logits)
    assert torch.equal(cam, expected_cam)


def test_the_gradient_works_in_bf16(by_gradient: PatchClassifier):
    patches = random_patches(3)
    expected_logits, expected_cam = logits_and_cam(by_gradient, patches)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = by_gradient(patches)  # fills autocast's cache of parameters
        logits, cam = logits_and_cam(by_gradient, patches)
    assert torch.equal(logits, plain.float())
    assert logits.dtype == cam.dtype == torch.float32
    assert not torch.equal(logits, expected_logits)
    assert torch.allclose(logits, expected_logits, atol=0.02)
    assert (cam - expected_cam).abs().max() / expected_cam.max() < 0.1


def test_preprocessing_scales_shifts_and_moves_the_channels():
    classifier = make("cnn")
    patches = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    patches[0, 3, 5] = torch.tensor([255, 51, 0], dtype=torch.uint8)
    assert to_images(patches)[0, :, 3, 5].tolist() == pytest.approx([1, 0.2, 0])
    x = classifier.preprocess(to_images(patches))
    assert x.shape == (1, 3, 50, 50)
    expected = [(1 - 0.8) / 0.2, (0.2 - 0.6) / 0.25, (0 - 0.7) / 0.2]
    assert x[0, :, 3, 5].tolist() == pytest.approx(expected, rel=1e-5)


def test_images_are_taken_as_patches_are():
    classifier, patches = make("cnn-bn"), random_patches(3)
    assert to_images(patches).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(classifier(to_images(patches)), classifier(patches))
    for found, expected in zip(
        logits_and_cam(classifier, to_images(patches)),
        logits_and_cam(classifier, patches),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_preprocessing_resizes_where_the_model_asks_for_it():
    x = make("resnet18", input_px=96).preprocess(to_images(random_patches(2)))
    assert x.shape == (2, 3, 96, 96)


@pytest.mark.parametrize("closed_form", [True, False])
def test_no_hook_is_left_when_the_network_raises(closed_form: bool):
    classifier = make("cnn")
    classifier.arch = replace(classifier.arch, closed_form=closed_form)
    with pytest.raises(RuntimeError):
        logits_and_cam(classifier, torch.zeros(1, 50, 50, 4, dtype=torch.uint8))
    layer: nn.Module = classifier.network.get_submodule("features")
    assert not layer._forward_hooks
