"""Exact mean and standard deviation of the color channels, independent of the patch order."""

import cv2
import numpy as np
from numpy.typing import NDArray

# OpenCV counts in float32, which is exact for integers up to 2**24.
_MAX_PIXELS = 2**24


def channel_histogram(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count each value of each channel of patches of shape (N, h, w, 3); return shape (3, 256)."""
    pixels = patches.reshape(-1, 1, 3)
    histogram = np.zeros((3, 256), np.int64)
    for start in range(0, len(pixels), _MAX_PIXELS):
        for channel in range(3):
            block = pixels[start : start + _MAX_PIXELS]
            counts = cv2.calcHist([block], [channel], None, [256], [0, 256])
            histogram[channel] += counts.ravel().astype(np.int64)
    return histogram


def channel_statistics(
    histogram: NDArray[np.int64],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Compute mean and standard deviation, 0..1, of each channel of a histogram (3, 256)."""
    values = np.arange(256) / 255
    frequency = histogram / histogram.sum(axis=1, keepdims=True)
    mean = frequency @ values
    # The mean of squares minus the square of the mean can be below 0 for a single color.
    std = np.sqrt((frequency * (values - mean[:, None]) ** 2).sum(axis=1))
    red, green, blue = map(float, mean)
    std_red, std_green, std_blue = map(float, std)
    return (red, green, blue), (std_red, std_green, std_blue)
