import numpy as np
import pytest

from wsi_idc.data.perturbations import (
    PERTURBATIONS,
    blur,
    change_brightness,
    change_resolution,
    change_stain,
    compress,
    shift_hue,
    to_gray,
)

NOISE = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)


def plain(*color: int) -> np.ndarray:
    return np.full((1, 8, 8, 3), color, np.uint8)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_change_keeps_shape_and_input_and_repeats(name: str):
    before = NOISE.copy()
    changed = PERTURBATIONS[name](NOISE)
    assert (changed.shape, changed.dtype) == (NOISE.shape, np.uint8)
    assert np.array_equal(NOISE, before)
    assert not np.array_equal(changed, NOISE)
    assert np.array_equal(PERTURBATIONS[name](NOISE), changed)


def test_hue_turns_from_red_to_green():
    assert shift_hue(plain(255, 0, 0), degrees=120)[0, 0, 0].tolist() == [0, 255, 0]
    assert shift_hue(plain(255, 0, 0), degrees=-120)[0, 0, 0].tolist() == [0, 0, 255]
    assert np.array_equal(shift_hue(NOISE, degrees=0), NOISE)


def test_amount_of_a_stain_scales_its_optical_density():
    assert np.abs(change_stain(NOISE).astype(int) - np.maximum(NOISE, 1)).max() <= 1
    eosin = np.array([0.07, 0.99, 0.11]) / np.linalg.norm([0.07, 0.99, 0.11])
    once, twice = (plain(*np.rint(255 * np.exp(-amount * eosin)).astype(int)) for amount in (1, 2))
    assert np.abs(change_stain(once, amount=(1, 2, 1)).astype(int) - twice).max() <= 2
    assert np.array_equal(change_stain(plain(255, 255, 255), amount=(0, 3, 1))[0, 0, 0], [255] * 3)


def test_light_gray_blur_and_compression():
    assert change_brightness(plain(100, 200, 250), factor=1.2)[0, 0, 0].tolist() == [120, 240, 255]
    assert to_gray(plain(255, 0, 0))[0, 0, 0].tolist() == [76, 76, 76]
    assert np.array_equal(blur(plain(9, 99, 199), sigma_px=2), plain(9, 99, 199))
    assert blur(NOISE, sigma_px=2).std() < 0.3 * NOISE.std()
    assert np.abs(compress(plain(9, 99, 199), quality=95).astype(int) - plain(9, 99, 199)).max() < 4


def test_resolution_shows_a_wider_or_narrower_field():
    ramp = np.arange(0, 160, 8, dtype=np.uint8)[None, None, :, None].repeat(20, 1).repeat(3, 3)
    wide = change_resolution(ramp, factor=2)[0, 0, :, 0].astype(int)
    assert np.array_equal(wide[5:15], np.arange(4, 160, 16))  # means of two columns
    assert np.array_equal(wide[:5], wide[9:4:-1])  # mirrored
    narrow = change_resolution(ramp, factor=0.5)[0, 0, :, 0].astype(int)
    assert np.all(np.abs(narrow - (ramp[0, 0, 5:15, 0].repeat(2))) <= 4)
