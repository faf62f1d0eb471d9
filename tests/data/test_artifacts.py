import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_idc.data.artifacts import BLUR, FOLD, GLASS, PEN, artifact_flags

HEMATOXYLIN, EOSIN = (0.56, 0.72, 0.41), (0.22, 0.80, 0.56)  # Macenko et al. 2009


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


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_artifacts_of_half_a_patch_are_found(sigma: float):
    blurred = np.stack([cv2.GaussianBlur(patch, (0, 0), sigma) for patch in tissue()])
    haze = (0.5 * blurred + 0.5 * 225).astype(np.uint8)
    fold = (255 * (tissue() / 255.0) ** 3).astype(np.uint8)
    for artifact, flag in ((blurred, BLUR), (haze, BLUR), (fold, FOLD)):
        patches = tissue()
        patches[:, :, :25] = artifact[:, :, :25]
        assert artifact_flags(patches).tolist() == [flag] * 6
        patches[:, :, 5:] = tissue()[:, :, 5:]  # a tenth of the patch
        assert artifact_flags(patches).tolist() == [0] * 6


def test_a_fold_of_dense_nuclei_is_not_black_ink():
    amounts = np.random.default_rng(0).uniform(0.8, 1.2, (2, 50, 50, 1))
    patches = (255 * np.exp(-2 * amounts * np.array(HEMATOXYLIN))).astype(np.uint8)
    assert artifact_flags(patches).tolist() == [FOLD, FOLD]


@pytest.mark.parametrize("px", [24, 33, 96])
def test_patches_of_other_sizes(px: int):
    blurred = np.stack([cv2.GaussianBlur(patch, (0, 0), 3) for patch in tissue(px=px)])
    assert artifact_flags(tissue(px=px)).tolist() == [0] * 6
    assert artifact_flags(blurred).tolist() == [BLUR] * 6


def test_patches_do_not_change_each_other():
    patches = np.concatenate([tissue(), np.full((3, 50, 50, 3), 240, np.uint8), tissue()])
    alone = [artifact_flags(patch[None])[0] for patch in patches]
    assert artifact_flags(patches).tolist() == alone
