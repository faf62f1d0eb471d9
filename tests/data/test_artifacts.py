import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_idc.data.artifacts import BLUR, FOLD, GLASS, PEN, artifact_flags

HEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)  # Ruifrok & Johnston 2001


def tissue(num: int = 6, px: int = 50) -> NDArray[np.uint8]:
    """Draw noise of two stains, shape (num, px, px, 3)."""
    amounts = np.random.default_rng(0).uniform(0, 0.8, (num, px, px, 2))
    return (255 * np.exp(-amounts @ np.array([HEMATOXYLIN, EOSIN]))).astype(np.uint8)


def test_sharp_tissue_has_no_flag():
    assert artifact_flags(tissue()).tolist() == [0] * 6
    assert artifact_flags(tissue()[:0]).shape == (0,)


def test_only_hematoxylin_has_no_flag():
    amounts = np.random.default_rng(0).uniform(0.5, 1.5, (2, 50, 50, 1))
    patches = (255 * np.exp(-amounts * np.array(HEMATOXYLIN))).astype(np.uint8)
    assert artifact_flags(patches).tolist() == [0, 0]


@pytest.mark.parametrize("contrast", [1.0, 0.3])
@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_blur_is_found_at_any_contrast(sigma: float, contrast: float):
    blurred = [cv2.GaussianBlur(patch, (0, 0), sigma) for patch in tissue()]
    patches = (np.stack(blurred) * contrast + 150 * (1 - contrast)).astype(np.uint8)
    assert (artifact_flags(patches) & BLUR == BLUR).all()


@pytest.mark.parametrize("ink", [(40, 60, 150), (30, 120, 80), (190, 40, 60), (40, 40, 45)])
def test_ink_is_found(ink: tuple[int, int, int]):
    patches = tissue()
    patches[:, :, :25] = ink  # half of each patch
    assert (artifact_flags(patches) & PEN == PEN).all()


def test_dark_tissue_is_a_fold_and_white_is_glass():
    layers = 255 * (tissue() / 255.0) ** 3
    assert artifact_flags(layers.astype(np.uint8)).tolist() == [FOLD] * 6
    assert artifact_flags(np.full((2, 50, 50, 3), 240, np.uint8)).tolist() == [GLASS, GLASS]


def test_patches_do_not_change_each_other():
    patches = np.concatenate([tissue(), np.full((3, 50, 50, 3), 240, np.uint8), tissue()])
    alone = [artifact_flags(patch[None])[0] for patch in patches]
    assert artifact_flags(patches).tolist() == alone
