"""Flag patches with artifacts (blur, pen, folds, glass or air) by classical image measures.

A patch gets a flag if a certain share of its area shows the artifact. The limits were chosen on
26,965 Kaggle patches of 4 um per px. The limits of blur and fold were chosen mainly on every second
patient. ``benchmarks/artifacts.py`` tests the flags on the other patients and on drawn artifacts.

- Blur: at least a quarter of the blocks of the patch are blurred. The finest octave is the green
  channel minus its Gaussian blur of 1 px. The next octave is the Gaussian blur of 1 px minus the
  Gaussian blur of 2 px. The energy of the finest octave, divided by the energy of the next octave,
  measures focus and does not depend on contrast (Pertuz 2013, doi:10.1016/j.patcog.2012.11.011,
  compares such measures). This ratio is 2 to 4 in sharp tissue. The ratio is 0.3 after a Gaussian
  blur of 1.5 px and in the haze of an air bubble. A block with a ratio below 0.9 is blurred.
- Pen: at least a fifth of the patch has colors that no mixture of hematoxylin and eosin has. Both
  stains absorb mostly green light (Ruifrok & Johnston 2001). Green and blue ink absorb more red
  light than green light. Red ink absorbs blue and green light, but little red light. Black ink is
  dark and has no color.
- Fold: at least three tenths of the patch absorb half of the blue light, and the patch has no ink.
  Several layers of tissue are dark and saturated (Kothari et al. 2013,
  doi:10.4103/2153-3539.117448, use saturation minus intensity). Dense nuclei are also dark and
  saturated, but hematoxylin absorbs less blue light than red and green light. Therefore blue
  separates folds from dense nuclei.
- Glass: at least nine tenths of the patch are nearly white.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

BLUR, PEN, FOLD, GLASS = 1, 2, 4, 8
# Name of each bit of a flag.
FLAGS = {"blur": BLUR, "pen": PEN, "fold": FOLD, "glass": GLASS}
_MIN_RATIO = 0.9
_MIN_ENERGY = 0.02  # squared gray levels; a block with less in the second octave is blank
# Energy that rounding to integers (1/12) adds to the finest octave.
_ROUNDING = 0.063
_MARGIN = 6  # px at each edge of a patch, where a filter also reads the next patch of the batch
_FOCUS_BLOCK, _FOLD_BLOCK = 9, 10  # sides of the blocks in px
_MAX_BLUE = 127  # optical density of 0.69
# Minimum shares of a patch for a flag.
_MIN_BLURRED, _MIN_PEN, _MIN_FOLD, _MIN_GLASS = 0.25, 0.2, 0.3, 0.9
_BATCH = 500  # patches at a time, so that intermediate results fit in the cache


def artifact_flags(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the flags of each patch, a sum of values of ``FLAGS``: shape (N,), uint8.

    A patch with the flag "glass" never has the flag "blur". A patch with the flag "pen" never has
    the flag "fold". 5,000 patches of 50 px take about 0.15 s on one core.

    Args:
        patches: RGB patches, shape (N, h, w, 3), uint8. A px is about 4 um, and h and w are at
            least 16.
    """
    parts = [_flags(patches[i : i + _BATCH]) for i in range(0, len(patches), _BATCH)]
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def _flags(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    num = len(patches)
    half = _block_means(patches, 2)
    red, green, blue = cv2.split(half)
    brightest, chroma = _brightest_and_chroma(half)
    cool_ink = (green > cv2.add(red, 5)) | ((green > red) & (blue > cv2.add(red, 40)))
    od_red, od_green, od_blue = cv2.split(cv2.LUT(half, _DENSITY).reshape(half.shape))
    red_ink = (od_blue > 0.7 * od_green) & (od_green > 0.9) & (od_red < 0.4 * od_green)
    black_ink = (brightest < 100) & (chroma < 20)

    def is_over(mask: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
        return mask.reshape(num, -1).mean(axis=1) >= limit

    is_pen = is_over(cool_ink | red_ink | black_ink, _MIN_PEN)
    is_thick = _block_means(patches, _FOLD_BLOCK)[..., 2] < _MAX_BLUE
    is_fold = is_over(is_thick, _MIN_FOLD) & ~is_pen
    is_glass = is_over(_is_white(half), _MIN_GLASS)
    is_blurred = is_over(_is_blurred(patches), _MIN_BLURRED) & ~is_glass
    bits = is_blurred * BLUR + is_pen * PEN + is_fold * FOLD + is_glass * GLASS
    return bits.astype(np.uint8)


_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def _block_means(values: NDArray, block_px: int) -> NDArray:
    """Compute the mean of each square block of patches.

    Args:
        values: Patches, shape (N, h, w, ...).
        block_px: Side of a block in px.

    Returns:
        Means, shape (N * rows, cols, ...); a patch has ``rows`` x ``cols`` blocks.
    """
    rows, cols = (max(1, side // block_px) for side in values.shape[1:3])
    height, width = (side // n * n for side, n in zip(values.shape[1:3], (rows, cols), strict=True))
    tall = np.ascontiguousarray(values[:, :height, :width]).reshape(-1, width, *values.shape[3:])
    size = (cols, len(values) * rows)
    return cv2.resize(tall, size, interpolation=cv2.INTER_AREA)


def _brightest_and_chroma(colors: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    """Return the largest of red, green and blue of each px, and the largest minus the smallest."""
    red, green, blue = cv2.split(colors)
    brightest = cv2.max(cv2.max(red, green), blue)
    return brightest, cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue))


def _is_white(colors: NDArray[np.uint8]) -> NDArray[np.bool_]:
    brightest, chroma = _brightest_and_chroma(colors)
    return (cv2.subtract(brightest, chroma) > 200) & (chroma < 15)


def _is_blurred(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return, for each block of the patches, whether the block is blurred and is not white."""
    inside = np.s_[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    green = patches[..., 1]
    tall = green.reshape(-1, green.shape[2]).astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(tall, (0, 0), sigma) for sigma in (1.0, 2.0))

    def energy(octave: NDArray[np.float32]) -> NDArray[np.float32]:
        return _block_means((octave * octave).reshape(green.shape)[inside], _FOCUS_BLOCK)

    finest, second = energy(tall - fine), energy(fine - coarse)
    is_soft = (second > _MIN_ENERGY) & (finest - _ROUNDING < _MIN_RATIO * second)
    return is_soft & ~_is_white(_block_means(patches[inside], _FOCUS_BLOCK))
