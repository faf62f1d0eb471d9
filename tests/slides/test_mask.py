import numpy as np
import pytest
from PIL import Image

from tests.slides.tiffs import write_tiff
from wsi_idc.core.errors import SlideError
from wsi_idc.slides.mask import find_tissue, read_mask, resize_mask
from wsi_idc.slides.slide import open_slide

SLIDE = np.full((800, 1200, 3), 255, np.uint8)
SLIDE[200:400, 400:800] = (200, 120, 170)
MASK = np.zeros((8, 12), np.uint8)
MASK[2:4, 4:8] = 1


@pytest.fixture
def slide(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", SLIDE, mpp=4.0)) as opened:
        yield opened


def test_tissue_is_found_in_a_thumbnail_of_32_um(slide):
    thumbnail, mask = find_tissue(slide)
    assert thumbnail.shape == (100, 150, 3)
    assert mask.shape == (100, 150)
    expected = np.zeros((100, 150), bool)
    expected[25:50, 50:100] = True
    assert np.array_equal(mask, expected)
    assert (thumbnail[expected] == (200, 120, 170)).all()


def test_a_tiny_slide_is_looked_at_more_closely(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", SLIDE[:, :800], mpp=0.25)) as slide:
        thumbnail, _ = find_tissue(slide)
    assert thumbnail.shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "RGBA", "I;16"])
def test_a_mask_is_what_is_not_black_in_any_kind_of_picture(tmp_path, slide, mode):
    path = tmp_path / "mask.png"
    if mode == "I;16":
        image = Image.fromarray(MASK.astype(np.uint16))
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([MASK * 9, MASK, MASK, np.full_like(MASK, 255)]))
    else:
        image = Image.fromarray(MASK * 255).convert(mode)
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert np.array_equal(read_mask(path, slide=slide), MASK > 0)


def test_the_transparent_part_of_a_mask_is_no_tissue(tmp_path, slide):
    rgba = np.dstack([np.full((8, 12, 3), 255, np.uint8), MASK * 255])
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", slide=slide), MASK > 0)


def test_a_mask_may_have_any_size_but_not_another_shape(tmp_path, slide):
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
        with pytest.raises(
            SlideError, match=rf"mask of {width}x{height} px is not that of a slide of 1200x800"
        ):
            found(width, height)


def test_a_mask_that_is_none_is_an_error_in_a_line(tmp_path, slide):
    path = tmp_path / "mask.png"
    with pytest.raises(SlideError, match=r"mask.png: no such file; give a mask as PNG"):
        read_mask(path, slide=slide)
    path.write_text("hello")
    with pytest.raises(SlideError, match=r"mask.png: not a readable mask .*; give a PNG$"):
        read_mask(path, slide=slide)
    Image.fromarray(np.zeros((80, 120), np.uint8)).save(path)
    with pytest.raises(SlideError, match=r"mask.png: the mask is empty"):
        read_mask(path, slide=slide)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SlideError, match=r"mask.png: not a readable mask"):
        read_mask(path, slide=slide)
    Image.new("1", (12_000, 8_000)).save(path)
    with pytest.raises(SlideError, match=r"12000x8000 px are too many for a mask"):
        read_mask(path, slide=slide)
    with pytest.raises(SlideError, match=r"not a readable mask"):
        read_mask(tmp_path, slide=slide)


def test_a_mask_at_another_size():
    large = resize_mask(MASK > 0, (16, 24))
    assert large.dtype == bool
    assert np.array_equal(large, MASK.repeat(2, axis=0).repeat(2, axis=1) > 0)
    assert np.array_equal(resize_mask(large, (8, 12)), MASK > 0)


def test_a_slide_of_metres_is_not_searched(tmp_path):
    path = write_tiff(tmp_path / "long.tif", np.full((64, 5000, 3), 255, np.uint8), mpp=90.0)
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"are 0\.5 m, which no slide"):
        find_tissue(slide)
