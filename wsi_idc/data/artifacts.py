"""Flag patches with artifacts (blur, pen, dark folds, glass) by classical image measures.

Each measure is a share of px or a ratio, so it depends little on contrast. The limits were chosen
on 26,965 Kaggle patches of 4 um per px: each flag is set for fewer than 2 % of these patches.
``benchmarks/artifacts.py`` tests the flags on real patches and on drawn artifacts.

- Blur: the finest octave of the green channel is its difference from a Gaussian blur of 1 px. The
  next octave is the difference between Gaussian blurs of 1 and 2 px. The ratio of their variances
  measures focus and does not depend on contrast (Pertuz 2013, doi:10.1016/j.patcog.2012.11.011,
  compares such measures). The ratio is 2 to 4 in sharp tissue. It is 0.3 after a Gaussian blur of
  1.5 px.
- Pen: px with a color that no mixture of hematoxylin and eosin has. Both stains absorb mostly green
  (Ruifrok & Johnston 2001). In green and blue ink, green is brighter than red. Red ink absorbs blue
  as much as green, but not red. Black ink is dark and has no color.
- Fold: dark px (several layers of tissue, or debris) in a patch without ink. Dense nuclei and
  keratin get this flag too, and folds of pale tissue do not get it.
- Glass: px that are nearly white.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

BLUR, PEN, FOLD, GLASS = 1, 2, 4, 8
# Name of each bit of a flag.
FLAGS = {"blur": BLUR, "pen": PEN, "fold": FOLD, "glass": GLASS}
_MIN_RATIO = 0.9
_MIN_VARIANCE = 0.02  # gray levels squared; if the second octave has less, the patch is blank
# Variance that rounding to integers (1/12) adds to the finest octave.
_ROUNDING = 0.063
_MARGIN = 6  # px at each edge of a patch, where a filter also reads the next patch of the batch
_MIN_PEN, _MIN_DARK, _MIN_GLASS = 0.2, 0.09, 0.9  # minimum shares of a patch for a flag
_BLOCK = 500  # patches at a time, so that intermediate results fit in the cache


def artifact_flags(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bits of ``FLAGS`` of each patch, shape (N,), uint8.

    Glass never has the flag "blur". 5,000 patches of 50 px take about 0.12 s on one core.

    Args:
        patches: RGB patches, shape (N, h, w, 3), uint8, of about 4 um per px and at least 16 px.
    """
    blocks = [_flags(patches[i : i + _BLOCK]) for i in range(0, len(patches), _BLOCK)]
    return np.concatenate([np.zeros(0, np.uint8), *blocks])


def _flags(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    num, height, width, _ = patches.shape
    tall = np.ascontiguousarray(patches[:, : height // 2 * 2]).reshape(-1, width, 3)
    half = cv2.resize(tall, (width // 2, len(tall) // 2), interpolation=cv2.INTER_AREA)
    red, green, blue = cv2.split(half)
    brightest = cv2.max(cv2.max(red, green), blue)
    darkest = cv2.min(cv2.min(red, green), blue)
    chroma = cv2.subtract(brightest, darkest)
    cool_ink = (green > cv2.add(red, 5)) | ((green > red) & (blue > cv2.add(red, 40)))
    density = cv2.LUT(half, _DENSITY).reshape(-1, width // 2, 3)
    od_red, od_green, od_blue = cv2.split(density)
    red_ink = (od_blue > 0.75 * od_green) & (od_green > 0.7) & (od_red < 0.4 * od_green)
    black_ink = (brightest < 100) & (chroma < 40)

    def is_over(mask: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
        return mask.reshape(num, -1).mean(axis=1) >= limit

    is_pen = is_over(cool_ink | red_ink | black_ink, _MIN_PEN)
    is_fold = is_over(od_green > 1.5, _MIN_DARK) & ~is_pen
    is_glass = is_over((darkest > 200) & (chroma < 15), _MIN_GLASS)
    is_blurred = _is_blurred(patches[..., 1]) & ~is_glass
    bits = is_blurred * BLUR + is_pen * PEN + is_fold * FOLD + is_glass * GLASS
    return bits.astype(np.uint8)


_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def _is_blurred(green: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether each patch is blurred, from its green channel, shape (N, h, w)."""
    num, _, width = green.shape
    tall = green.reshape(-1, width).astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(tall, (0, 0), sigma) for sigma in (1.0, 2.0))

    def variance(octave: NDArray[np.float32]) -> NDArray[np.float32]:
        inside = octave.reshape(green.shape)[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        return inside.reshape(num, -1).var(axis=1)

    finest, second = variance(tall - fine), variance(fine - coarse)
    return (second > _MIN_VARIANCE) & (finest - _ROUNDING < _MIN_RATIO * second)
