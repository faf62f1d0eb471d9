"""Mean and standard deviation of the channels, exact whatever the order of the patches."""

import cv2
import numpy as np
from numpy.typing import NDArray


def channel_histogram(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count each value of each channel of patches of shape (N, h, w, 3); return shape (3, 256)."""
    flat = patches.reshape(-1, 1, 3)
    # OpenCV counts in float32, which holds whole numbers up to 2**24.
    step = 2**24
    histogram = np.zeros((3, 256), np.int64)
    for start in range(0, len(flat), step):
        for channel in range(3):
            part = flat[start : start + step]
            counts = cv2.calcHist([part], [channel], None, [256], [0, 256])
            histogram[channel] += counts.ravel().astype(np.int64)
    return histogram


def channel_statistics(
    histogram: NDArray[np.int64],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation, 0..1, of each channel of a histogram (3, 256)."""
    values = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    # Not the mean of squares less the square of the mean: that can be below 0 for one colour.
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    red, green, blue = map(float, mean)
    std_red, std_green, std_blue = map(float, std)
    return (red, green, blue), (std_red, std_green, std_blue)
