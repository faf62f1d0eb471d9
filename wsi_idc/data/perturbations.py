"""Changes of patches that imitate other laboratories: stain, light, focus, compression, resolution.

A change is a function. Its argument and its result are patches, shape (N, H, W, 3), uint8. The
changes are not random.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

Patches = NDArray[np.uint8]

# Optical density of haematoxylin, eosin and a third stain in red, green and blue.
_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # Ruifrok 2001
# Reference vectors of Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250, and a vector normal to
# both.
_MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
_MACENKO = np.vstack([_MACENKO, np.cross(*_MACENKO)])


def shift_hue(patches: Patches, *, degrees: float) -> Patches:
    """Turn the hue of each HSV color by an angle; an angle of 120 degrees turns red into green."""

    def turn(image: Patches) -> NDArray[np.float32]:
        hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + degrees) % 360
        return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    return _each(patches, turn)


def change_stain(
    patches: Patches,
    *,
    before: NDArray[np.float64] = _RUIFROK,
    after: NDArray[np.float64] = _RUIFROK,
    amount: tuple[float, float, float] = (1, 1, 1),
) -> Patches:
    """Change the colors and the amounts of the stains.

    Args:
        patches: Patches, shape (N, H, W, 3), uint8.
        before: Optical density of each stain in the patches, shape (3, 3). A row is a stain; its
            length does not matter.
        after: Optical density of each stain in the result, shape (3, 3).
        amount: Factors of the amounts of haematoxylin, eosin and the third stain.
    """
    unit = [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (before, after)]
    matrix = np.linalg.inv(unit[0]) @ np.diag(amount) @ unit[1]
    density = -np.log(np.maximum(patches, 1).astype(np.float32) / 255)
    return _to_uint8(255 * np.exp(-(density @ matrix.astype(np.float32))))


def change_brightness(patches: Patches, *, factor: float) -> Patches:
    """Multiply all pixel values by a factor."""
    return _to_uint8(factor * patches.astype(np.float32))


def to_gray(patches: Patches) -> Patches:
    """Remove all color."""
    gray = _each(patches, lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None])
    return np.repeat(gray, 3, axis=3)


def blur(patches: Patches, *, sigma_px: float) -> Patches:
    """Blur with a Gaussian whose standard deviation is ``sigma_px``; edges are mirrored."""
    border = cv2.BORDER_REFLECT
    return _each(
        patches, lambda image: cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=border)
    )


def compress(patches: Patches, *, quality: int) -> Patches:
    """Compress each patch as JPEG; ``quality`` is from 1 to 100."""

    def code(image: Patches) -> Patches:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]

    return _each(patches, code)


def change_resolution(patches: Patches, *, factor: float) -> Patches:
    """Show a field of view that is ``factor`` times as wide, as if the mpp of the slide were wrong.

    The tissue around a patch is not known. Therefore, if ``factor`` is above 1, mirrored tissue
    fills the area around the patch.
    """
    side = patches.shape[1]
    size = max(1, round(side / factor))
    interpolation = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC

    def resize(image: Patches) -> Patches:
        resized = cv2.resize(image, (size, size), interpolation=interpolation)
        if size < side:
            before = (side - size) // 2
            edges = (before, side - size - before)
            return np.pad(resized, (edges, edges, (0, 0)), mode="symmetric")
        start = (size - side) // 2
        return resized[start : start + side, start : start + side]

    return _each(patches, resize)


PERTURBATIONS: dict[str, Callable[[Patches], Patches]] = {
    "hue +20 degrees": partial(shift_hue, degrees=20),
    "hue -20 degrees": partial(shift_hue, degrees=-20),
    "haematoxylin -30 %": partial(change_stain, amount=(0.7, 1, 1)),
    "eosin +30 %": partial(change_stain, amount=(1, 1.3, 1)),
    "stain of Macenko": partial(change_stain, after=_MACENKO),
    "stain from Macenko": partial(change_stain, before=_MACENKO),
    "brightness -20 %": partial(change_brightness, factor=0.8),
    "brightness +20 %": partial(change_brightness, factor=1.2),
    "gray": to_gray,
    "JPEG quality 30": partial(compress, quality=30),
    "JPEG quality 10": partial(compress, quality=10),
    "blur 1 px": partial(blur, sigma_px=1.0),
    "blur 1.5 px": partial(blur, sigma_px=1.5),
    "10 % finer": partial(change_resolution, factor=0.9),
    "10 % coarser": partial(change_resolution, factor=1.1),
    "twice as coarse": partial(change_resolution, factor=2.0),
}


def _each(patches: Patches, change: Callable[[Patches], NDArray]) -> Patches:
    return _to_uint8(np.stack([change(patch) for patch in patches]))


def _to_uint8(values: NDArray) -> Patches:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
