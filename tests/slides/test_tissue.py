import cv2
import numpy as np

from wsi_idc.slides.tissue import saturation_threshold, tissue_mask, without_small
from wsi_idc.synthetic.tissue import draw_slide

PINK = (220, 150, 190)


def blank(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return glass as a scanner and JPEG give it: not quite white, not quite grey."""
    glass = np.array([240, 238, 241]) + np.random.default_rng(seed).integers(
        -3, 4, (height, width, 3)
    )
    return glass.astype(np.uint8)


def test_a_blank_slide_has_no_tissue():
    assert not tissue_mask(blank(60, 80), mpp=32).any()
    assert not tissue_mask(np.full((60, 80, 3), 255, np.uint8), mpp=32).any()
    assert not tissue_mask(np.zeros((60, 80, 3), np.uint8), mpp=32).any()


def test_a_slide_full_of_tissue_is_full():
    slide = blank(60, 80)
    rng = np.random.default_rng(0)
    # From the pale to the dark, so that Otsu would cut it in two.
    strength = rng.uniform(0.3, 3.0, (60, 80, 1))
    slide[:] = 240 * np.exp(-strength * np.array([0.2, 0.6, 0.3]))
    assert tissue_mask(slide, mpp=32).all()


def test_tissue_on_glass_is_found_to_the_px():
    slide = blank(60, 80)
    slide[10:30, 20:50] = PINK
    expected = np.zeros((60, 80), bool)
    expected[10:30, 20:50] = True
    assert np.array_equal(tissue_mask(slide, mpp=32), expected)


def test_tissue_at_the_border_stays_there():
    slide = blank(60, 80)
    slide[:20, 60:] = PINK
    assert tissue_mask(slide, mpp=32)[:20, 60:].all()
    assert tissue_mask(slide, mpp=32).sum() == 400


def test_ink_and_the_edge_of_the_glass_are_no_tissue():
    slide = blank(60, 80)
    slide[50:] = (60, 58, 59)  # a dark band
    slide[:5, :20] = (6, 2, 0)  # nearly black: saturation alone would be 255
    slide[10:30, 20:50] = PINK
    found = tissue_mask(slide, mpp=32)
    assert found[10:30, 20:50].all()
    assert found.sum() == 600


def test_specks_and_small_holes_are_gone():
    slide = blank(60, 80)
    slide[10:40, 20:60] = PINK
    slide[50, 70] = PINK  # 32 x 32 um
    slide[20:22, 30] = 240  # a lumen
    slide[25:33, 40:48] = 240  # 256 um: fat, say
    found = tissue_mask(slide, mpp=32)
    assert not found[50, 70]
    assert found[20:22, 30].all()
    assert not found[28, 44]


def test_the_threshold_is_held_between_glass_and_tissue():
    pale = np.repeat([2, 6], 50).astype(np.uint8)
    strong = np.repeat([80, 200], 50).astype(np.uint8)
    both = np.repeat([2, 38], 50).astype(np.uint8)
    assert saturation_threshold(pale) == 15
    assert saturation_threshold(strong) == 25
    assert 15 <= saturation_threshold(both) <= 25


def test_parts_are_joined_by_their_corners_too():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    assert without_small(mask, min_px=2).tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, False, False],
    ]
    assert not without_small(mask, min_px=3).any()


def test_synthetic_tissue_is_found():
    drawn = draw_slide("S1", seed=0, height_px=800, width_px=800)
    thumbnail = cv2.resize(drawn.rgb, (100, 100), interpolation=cv2.INTER_AREA)
    truth = cv2.resize(drawn.tissue.astype(np.uint8), (100, 100), interpolation=cv2.INTER_AREA)
    found = tissue_mask(thumbnail, mpp=32)
    assert found[truth == 1].mean() > 0.98
