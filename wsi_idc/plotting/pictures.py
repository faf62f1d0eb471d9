"""Pictures inside a page: tissue as JPEG, grids as PNG, both as data URIs."""

import base64
import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Browsers draw pictures up to 16,384 px a side, on some graphics cards half of that.
MAX_SIDE_PX = 8192
_JPEG = {"quality": 90, "subsampling": 0}
_THUMBNAIL_JPEG = {"quality": 82}


def tissue_uri(image: NDArray[np.uint8]) -> tuple[str, float]:
    """Return tissue as a JPEG data URI, and its px for each px of ``image``.

    Args:
        image: Shape (h, w, 3).
    """
    small, scale = downscaled(image, MAX_SIDE_PX)
    return _uri(small, "JPEG", **_JPEG), scale


def thumbnail_uri(image: NDArray[np.uint8], side_px: int) -> str:
    """Return tissue, at most ``side_px`` a side, as a JPEG data URI."""
    return _uri(downscaled(image, side_px)[0], "JPEG", **_THUMBNAIL_JPEG)


def grid_uri(grid: NDArray[np.float32], colours: NDArray[np.uint8]) -> str:
    """Return a grid of values from 0 to 1 as a PNG data URI, one px a cell, clear where NaN.

    Args:
        grid: Shape (rows, cols), NaN where there is no patch.
        colours: Red, green, blue of evenly spaced values from 0 to 1, shape (M, 3).
    """
    there = np.isfinite(grid)
    step = np.round(np.clip(np.where(there, grid, 0), 0, 1) * (len(colours) - 1)).astype(int)
    rgba = np.dstack([colours[step], there.astype(np.uint8) * 255])
    return _uri(rgba, "PNG", optimize=True)


def downscaled(image: NDArray[np.uint8], side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Return an image at most ``side_px`` a side, by area, and its px for each px before."""
    scale = side_px / max(image.shape[:2])
    if scale >= 1:
        return image, 1.0
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8), scale


def _uri(pixels: NDArray[np.uint8], kind: str, **how: object) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{data}"
