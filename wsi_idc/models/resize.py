"""Resize images as ``F.interpolate`` does, faster on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(images: Tensor, size: int) -> Tensor:
    """Return images (N, C, size, size) of images (N, C, H, W), bilinear with antialiasing.

    In the memory of what is returned the channels are last.
    """
    if images.device.type != "cpu":
        found = _interpolate(images, (size, size))
        return found.contiguous(memory_format=torch.channels_last)
    num, channels, height, width = images.shape
    # Each axis is a weighted sum, so it is a product with a matrix: a quarter of interpolate's time
    # where channels are last. Outside autocast, which would round the pixels to half precision.
    with torch.autocast("cpu", enabled=False):
        rows = _weights(height, size, images)
        columns = torch.kron(_weights(width, size, images), torch.eye(channels))
        lines = images.permute(0, 2, 3, 1).reshape(num, height, width * channels)
        pixels = (rows @ lines).view(num * size, width * channels) @ columns.T
    return pixels.view(num, size, size, channels).permute(0, 3, 1, 2)


def _weights(before: int, after: int, like: Tensor) -> Tensor:
    """Return what each pixel of a line weighs in each pixel of the resized one, (after, before)."""
    unit = torch.eye(before, dtype=like.dtype).view(1, 1, before, before)
    return _interpolate(unit, (after, before))[0, 0]


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
