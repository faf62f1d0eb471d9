import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize, to_image, to_pil_image

from tests.classifiers import make_classifier, random_patches
from wsi_idc.models.classifier import to_images


def test_preprocessing_normalizes_and_moves_the_channels():
    classifier = make_classifier("cnn")
    patches = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    patches[0, 3, 5] = torch.tensor([255, 51, 0], dtype=torch.uint8)
    assert to_images(patches)[0, :, 3, 5].tolist() == pytest.approx([1, 0.2, 0])
    x = classifier.preprocess(to_images(patches))
    assert x.shape == (1, 3, 50, 50)
    expected = [(1 - 0.8) / 0.2, (0.2 - 0.6) / 0.25, (0 - 0.7) / 0.2]
    assert x[0, :, 3, 5].tolist() == pytest.approx(expected, rel=1e-5)


def test_images_are_taken_as_patches_are():
    classifier, patches = make_classifier("cnn-bn"), random_patches(3)
    assert to_images(patches).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(classifier(to_images(patches)), classifier(patches))


@pytest.mark.parametrize("patch_px", [50, 300])
def test_preprocessing_resizes_to_the_input_size_also_under_autocast(patch_px: int):
    classifier = make_classifier("resnet18", input_px=96)
    images = to_images(random_patches(2, patch_px=patch_px))
    x = classifier.preprocess(images)
    assert x.shape == (2, 3, 96, 96)
    normalized = (images - classifier.mean) / classifier.std
    expected = F.interpolate(normalized, size=(96, 96), mode="bilinear", antialias=True)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier.preprocess(images), x)


@pytest.mark.parametrize("patch_px", [50, 300])
def test_bicubic_interpolation_is_that_of_torchvision_and_pillow(patch_px: int):
    classifier = make_classifier("resnet18", input_px=96, interpolation="bicubic")
    images = to_images(random_patches(2, patch_px=patch_px))
    values = classifier.preprocess(images) * classifier.std + classifier.mean
    mode = InterpolationMode.BICUBIC
    resized = resize(images, [96, 96], interpolation=mode, antialias=True)
    torch.testing.assert_close(values, resized, rtol=0, atol=1e-5)
    # Pillow rounds to 8 bits and clips to 0..1. In a patch with less contrast, nothing is clipped.
    images = images / 2 + 0.25
    values = classifier.preprocess(images) * classifier.std + classifier.mean
    for image, value in zip(images, values, strict=True):
        pillow = resize(to_pil_image(image), [96, 96], interpolation=mode)
        torch.testing.assert_close(value, to_image(pillow) / 255, rtol=0, atol=2 / 255)
