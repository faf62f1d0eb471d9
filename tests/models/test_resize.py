"""Tests of the resize by products: it is what interpolate does."""

import pytest
import torch
from torch.nn import functional as F

from wsi_idc.models.resize import resize


@pytest.mark.parametrize("shape", [(50, 50), (96, 96), (40, 50), (300, 7)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_resize_is_interpolation(shape, channels_last):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *shape, generator=generator)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images, size=(64, 64), mode="bilinear", antialias=True)
    found = resize(images, 64)
    assert found.shape == (2, 3, 64, 64)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_resize_is_not_rounded_by_autocast():
    images = torch.rand(1, 3, 50, 50)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize(images, 96)
    assert torch.equal(found, resize(images, 96))
