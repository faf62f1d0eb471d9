import cv2
import numpy as np
import pytest
from PIL import Image

from tests.slides.tiffs import write_tiff
from wsi_idc.core.errors import SlideError
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tissue import (
    find_tissue,
    read_mask,
    remove_small,
    resize_mask,
    saturation_threshold,
    tissue_mask,
)
from wsi_idc.synthetic.tissue import draw_slide

PINK = (220, 150, 190)


def blank(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return glass as a scanner and JPEG give it: not quite white, not quite grey."""
    glass = np.array([240, 238, 241]) + np.random.default_rng(seed).integers(
        -3, 4, (height, width, 3)
    )
    return glass.astype(np.uint8)


def test_blank_slide_has_no_tissue():
    assert not tissue_mask(blank(60, 80), mpp=32).any()
    assert not tissue_mask(np.full((60, 80, 3), 255, np.uint8), mpp=32).any()
    assert not tissue_mask(np.zeros((60, 80, 3), np.uint8), mpp=32).any()


def test_slide_full_of_tissue_has_no_background():
    slide = blank(60, 80)
    rng = np.random.default_rng(0)
    # From the pale to the dark, so that Otsu would cut it in two.
    strength = rng.uniform(0.3, 3.0, (60, 80, 1))
    slide[:] = 240 * np.exp(-strength * np.array([0.2, 0.6, 0.3]))
    assert tissue_mask(slide, mpp=32).all()


@pytest.mark.parametrize("area", [np.s_[10:30, 20:50], np.s_[:20, 60:]], ids=["middle", "border"])
def test_tissue_on_glass_is_exact(area):
    slide, expected = blank(60, 80), np.zeros((60, 80), bool)
    slide[area], expected[area] = PINK, True
    assert np.array_equal(tissue_mask(slide, mpp=32), expected)


def test_ink_and_glass_edges_are_background():
    slide = blank(60, 80)
    slide[50:] = (60, 58, 59)  # a dark band
    slide[:5, :20] = (6, 2, 0)  # nearly black: saturation alone would be 255
    slide[10:30, 20:50] = PINK
    found = tissue_mask(slide, mpp=32)
    assert found[10:30, 20:50].all()
    assert found.sum() == 600


def test_specks_and_small_holes_are_removed():
    slide = blank(60, 80)
    slide[10:40, 20:60] = PINK
    slide[50, 70] = PINK  # 32 x 32 um
    slide[20:22, 30] = 240  # a lumen
    slide[25:33, 40:48] = 240  # 256 um: fat, say
    found = tissue_mask(slide, mpp=32)
    assert not found[50, 70]
    assert found[20:22, 30].all()
    assert not found[28, 44]


def test_threshold_is_clipped_between_glass_and_tissue():
    levels = ([2, 6], [80, 200], [2, 38])
    pale, strong, both = (np.repeat(pair, 50).astype(np.uint8) for pair in levels)
    assert saturation_threshold(pale) == 15
    assert saturation_threshold(strong) == 25
    assert 15 <= saturation_threshold(both) <= 25


def test_parts_that_touch_at_corners_are_connected():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    expected = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    assert np.array_equal(remove_small(mask, min_px=2), expected)
    assert not remove_small(mask, min_px=3).any()


def test_synthetic_tissue_is_found():
    drawn = draw_slide("S1", seed=0, height_px=800, width_px=800)
    thumbnail = cv2.resize(drawn.rgb, (100, 100), interpolation=cv2.INTER_AREA)
    truth = cv2.resize(drawn.tissue.astype(np.uint8), (100, 100), interpolation=cv2.INTER_AREA)
    found = tissue_mask(thumbnail, mpp=32)
    assert found[truth == 1].mean() > 0.98


SLIDE = np.full((800, 1200, 3), 255, np.uint8)
SLIDE[200:400, 400:800] = (200, 120, 170)
MASK = np.zeros((8, 12), np.uint8)
MASK[2:4, 4:8] = 1


@pytest.fixture
def slide(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", SLIDE, mpp=4.0)) as opened:
        yield opened


def test_thumbnail_has_32_um(slide):
    thumbnail, mask = find_tissue(slide)
    assert thumbnail.shape == (100, 150, 3)
    assert mask.shape == (100, 150)
    expected = np.zeros((100, 150), bool)
    expected[25:50, 50:100] = True
    assert np.array_equal(mask, expected)
    assert (thumbnail[expected] == (200, 120, 170)).all()


def test_tiny_slide_has_a_finer_thumbnail(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", SLIDE[:, :800], mpp=0.25)) as slide:
        thumbnail, _ = find_tissue(slide)
    assert thumbnail.shape == (64, 64, 3)


RGBA = {  # the background is black, or transparent
    "RGBA": np.dstack([MASK * 9, MASK, MASK, np.full_like(MASK, 255)]),
    "transparent RGBA": np.dstack([np.full((8, 12, 3), 255, np.uint8), MASK * 255]),
}


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16", *RGBA])
def test_mask_is_everything_but_black_in_any_mode(tmp_path, slide, mode):
    path = tmp_path / "mask.png"
    if mode == "I;16":
        image = Image.fromarray(MASK.astype(np.uint16))
    elif mode in RGBA:
        image = Image.fromarray(RGBA[mode])
    else:
        image = Image.fromarray(MASK * 255).convert(mode)
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode.split()[-1]
    assert np.array_equal(read_mask(path, slide=slide), MASK > 0)


def test_mask_has_any_size_but_the_aspect_ratio_of_the_slide(tmp_path, slide):
    def found(width, height):
        path = tmp_path / "mask.png"
        Image.fromarray(np.full((height, width), 7, np.uint8)).save(path)
        return read_mask(path, slide=slide).shape

    assert found(1200, 800) == (800, 1200)
    assert found(2400, 1600) == (1600, 2400)
    assert found(3, 2) == (2, 3)
    # A px of rounding, or a hundredth.
    assert found(100, 67) == (67, 100)
    assert found(600, 404) == (404, 600)
    for width, height in ((800, 1200), (600, 405), (100, 100)):
        message = rf"mask of {width}x{height} px does not fit a slide of 1200x800"
        with pytest.raises(SlideError, match=message):
            found(width, height)


def test_unusable_masks_are_refused(tmp_path, slide):
    names = ["none", "text", "empty", "cut", "large"]
    none, text, empty, short, large = (tmp_path / f"{name}.png" for name in names)
    text.write_text("hello")
    Image.fromarray(np.zeros((80, 120), np.uint8)).save(empty)
    short.write_bytes(empty.read_bytes()[:60])
    Image.new("1", (12_000, 8_000)).save(large)
    for path, message in (
        (none, r"none.png: no such file; give a mask as PNG"),
        (text, r"text.png: not a readable mask .*; give a PNG$"),
        (empty, r"empty.png: the mask is empty"),
        (short, r"cut.png: not a readable mask"),
        (large, r"12000x8000 px are too many for a mask"),
        (tmp_path, r"not a readable mask"),
    ):
        with pytest.raises(SlideError, match=message):
            read_mask(path, slide=slide)


def test_mask_is_resized():
    large = resize_mask(MASK > 0, (16, 24))
    assert large.dtype == bool
    assert np.array_equal(large, MASK.repeat(2, axis=0).repeat(2, axis=1) > 0)
    assert np.array_equal(resize_mask(large, (8, 12)), MASK > 0)


def test_slide_of_meters_is_refused(tmp_path):
    path = write_tiff(tmp_path / "long.tif", np.full((64, 5000, 3), 255, np.uint8), mpp=90.0)
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"are 0\.5 m, longer"):
        find_tissue(slide)


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), "grey", (241, 238, 240)])
def test_slide_without_color_is_refused(tmp_path, color):
    pixels = np.full((100, 100, 3), 240, np.uint8)
    pixels[20:70, 20:70] = 90 if color == "grey" else color
    path = write_tiff(tmp_path / "S1.tif", pixels, mpp=4.0)
    message = "no tissue found, because nothing in the slide has color: it is grey, a single"
    with open_slide(path) as slide, pytest.raises(SlideError, match=message):
        find_tissue(slide)


def test_mask_is_turned_upright(slide, tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(MASK[::-1, ::-1].copy()).save(tmp_path / "m.png", exif=exif.tobytes())
    assert np.array_equal(read_mask(tmp_path / "m.png", slide=slide), MASK > 0)
