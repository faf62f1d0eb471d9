import cv2
import numpy as np
import pytest

from tests.slides.tiffs import write_tiff
from wsi_idc.core.errors import SlideError
from wsi_idc.data.pack import Pack
from wsi_idc.geometry.grid import mosaic, shape_of
from wsi_idc.slides.patches import tissue_fraction
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tissue import find_tissue, remove_small, tissue_mask
from wsi_idc.synthetic.tissue import draw_slide

PINK = (220, 150, 190)


def blank(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return glass as a scanner and JPEG give it: not quite white, not quite grey."""
    glass = np.array([240, 238, 241]) + np.random.default_rng(seed).integers(
        -2, 3, (height, width, 3)
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


@pytest.mark.parametrize(
    "color",
    [
        *((30, 60, 190), (20, 40, 90)),  # blue pens
        *((20, 130, 60), (120, 190, 150)),  # green pens, strong and faded
        *((20, 20, 22), (90, 88, 90)),  # black pens
        *((220, 30, 40), (190, 20, 30), (240, 130, 140)),  # red pens
        *((150, 90, 30), (230, 190, 60)),  # brown and yellow ink of margins
    ],
)
def test_pen_on_glass_is_no_tissue(color):
    slide = blank(60, 80)
    slide[10:30, 20:50] = PINK
    cv2.line(slide, (5, 55), (75, 40), color, thickness=4)
    cv2.circle(slide, (65, 12), 8, color, thickness=2)
    found = tissue_mask(slide, mpp=32)
    assert found[10:30, 20:50].all()
    assert found.sum() == 600


@pytest.mark.parametrize("tint", [(0, 0, 0), (0, -4, 0), (1, 0, -6), (-6, 0, 0)])
def test_fat_is_tissue_on_glass_of_any_tint(tint):
    slide = blank(60, 80)
    # At 32 um per px, the membranes of fat cells and the glass in them are one pale color.
    slide[10:30, 20:50] = (240, 228, 239)
    slide = (slide + np.array(tint)).astype(np.uint8)
    assert not tissue_mask(slide[30:], mpp=32).any()
    expected = np.zeros((60, 80), bool)
    expected[10:30, 20:50] = True
    assert np.array_equal(tissue_mask(slide, mpp=32), expected)


def test_settings_choose_threshold_pieces_and_holes():
    slide = blank(60, 80)
    slide[10:40, 20:60] = PINK
    slide[20:24, 30:34] = 240  # 128 x 128 um, 0.016 mm2; closing leaves a part of it
    slide[50:52, 70:73] = PINK  # 64 x 96 um, 0.006 mm2
    found = tissue_mask(slide, mpp=16)
    assert found[50:52, 70:73].sum() == 0  # at 16 um per px, 0.0015 mm2
    found = tissue_mask(slide, mpp=32)
    assert found[50:52, 70:73].all()
    assert not tissue_mask(slide, mpp=32, min_piece_mm2=0.01)[50].any()
    assert not tissue_mask(slide, mpp=32, threshold=50).any()
    slide[15:30, 25:40] = 240
    assert not tissue_mask(slide, mpp=32)[20, 30]
    assert tissue_mask(slide, mpp=32, min_hole_mm2=0.3)[20, 30]


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


@pytest.fixture
def slide(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", SLIDE, mpp=4.0)) as opened:
        yield opened


def test_thumbnail_of_a_small_slide_has_1024_px_and_its_mask_has_16_um(slide):
    thumbnail, mask = find_tissue(slide)
    assert thumbnail.shape == (683, 1024, 3)
    assert mask.shape == (683, 1024)
    # The mask is found on 300 x 200 px of 16 um; the tissue is a third of them on each axis.
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    assert (rows[[0, -1]] == [171, 341]).all()
    assert (cols[[0, -1]] == [341, 682]).all()
    assert mask.sum() == 171 * 342
    assert (thumbnail[175:338, 345:679] == (200, 120, 170)).all()


def test_thumbnail_of_a_large_slide_is_the_level_of_16_um(tmp_path):
    pixels = np.full((90, 2003, 3), 255, np.uint8)
    pixels[20:60, 500:900] = PINK
    path = write_tiff(tmp_path / "S1.tif", pixels, mpp=15.0)
    with open_slide(path) as slide:  # 2003 px of 15 um are 1877.8 px of 16 um
        thumbnail, mask = find_tissue(slide)
    assert thumbnail.shape == (84, 1877, 3)
    assert mask.shape == (84, 1877)


def test_tiny_slide_is_its_own_thumbnail(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", SLIDE[:, :800], mpp=0.25)) as slide:
        thumbnail, _ = find_tissue(slide)
    assert np.array_equal(thumbnail, SLIDE[:, :800])


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


def test_dark_slide_is_refused(tmp_path):
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[20:70, 20:70] = (20, 40, 200)
    path = write_tiff(tmp_path / "S1.tif", pixels, mpp=4.0)
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match="the slide is dark like a"),
    ):
        find_tissue(slide)


@pytest.mark.real
def test_real_tissue_is_found(real_pack: Pack):
    """Six whole patients: all patches of IDC have tissue, and all others but those of ink."""
    is_found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for patient in ("8864", "8865", "8867", "8957", "14082", "14306"):
        rows = real_pack.rows_of(patient)
        cells = real_pack.cells()[rows]
        shape = shape_of(cells)
        image = mosaic(real_pack.patches[rows], cells, shape=shape, fill=245)
        size = (image.shape[1] // 4, image.shape[0] // 4)
        mask = tissue_mask(cv2.resize(image, size, interpolation=cv2.INTER_AREA), mpp=16)
        corners = cells[:, ::-1]
        boxes = np.hstack([corners, corners + 1]) / np.tile(shape[::-1], 2)
        fraction = tissue_fraction(mask, boxes)
        label = real_pack.index["label"].to_numpy()[rows]
        for key, found in is_found.items():
            found.append(fraction[label == key] >= 0.1)
    assert np.concatenate(is_found[1]).all()
    assert np.concatenate(is_found[0]).mean() == pytest.approx(0.977, abs=0.002)
