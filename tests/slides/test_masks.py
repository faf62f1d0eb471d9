import json

import numpy as np
import pytest
from PIL import Image

from tests.slides.tiffs import write_scn, write_tiff
from wsi_idc.core.errors import SlideError
from wsi_idc.slides.masks import read_mask
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.slides.tissue import resize_mask

WHITE = np.full((800, 1200, 3), 255, np.uint8)
MASK = np.zeros((8, 12), np.uint8)
MASK[2:4, 4:8] = 1

RGBA = {  # the background is black, or transparent
    "RGBA": np.dstack([MASK * 9, MASK, MASK, np.full_like(MASK, 255)]),
    "transparent RGBA": np.dstack([np.full((8, 12, 3), 255, np.uint8), MASK * 255]),
}


@pytest.fixture
def slide(tmp_path):
    with open_slide(write_tiff(tmp_path / "S1.tif", WHITE, mpp=4.0)) as opened:
        yield opened


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


def test_mask_is_turned_upright(slide, tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(MASK[::-1, ::-1].copy()).save(tmp_path / "m.png", exif=exif.tobytes())
    assert np.array_equal(read_mask(tmp_path / "m.png", slide=slide), MASK > 0)


def scan(folder, *, x: int, y: int, width: int, height: int) -> Slide:
    """Return a slide of 1200 x 800 px with a scanned area."""
    area = np.full((height, width, 3), 240, np.uint8)
    return open_slide(write_scn(folder / "s.scn", area, x=x, y=y, glass=(1200, 800)))


def save(path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_mask_of_the_scanned_area_is_placed_on_the_slide(tmp_path):
    mask = np.zeros((30, 40), bool)
    mask[10:20, 5:15] = True
    path = save(tmp_path / "m.png", mask)
    with scan(tmp_path, x=600, y=400, width=200, height=150) as slide:
        found = read_mask(path, slide=slide)
        expected = np.zeros((800, 1200), bool)
        expected[450:500, 625:675] = True  # a px of the mask has 5 px of the slide
        assert np.array_equal(found, expected)
        assert np.array_equal(read_mask(path, slide=slide, frame="qupath"), expected)
        whole = save(tmp_path / "w.png", np.ones((80, 120), bool))
        assert read_mask(whole, slide=slide).shape == (80, 120)
        message = "not fit a slide of 1200x800 px or its scanned area of 200x150 px; give a mask"
        with pytest.raises(SlideError, match=message):
            read_mask(save(tmp_path / "x.png", np.ones((9, 9), bool)), slide=slide)
        with pytest.raises(SlideError, match="complete slide, or another --mask-frame"):
            read_mask(path, slide=slide, frame="level0")


def test_frame_of_a_mask_with_the_proportions_of_both_must_be_given(tmp_path):
    path = save(tmp_path / "m.png", np.ones((2, 3), bool))
    with scan(tmp_path, x=300, y=100, width=600, height=400) as slide:
        with pytest.raises(SlideError, match="give --mask-frame level0 if it shows the complete"):
            read_mask(path, slide=slide)
        assert read_mask(path, slide=slide, frame="level0").all()
        found = read_mask(path, slide=slide, frame="qupath")
        assert found[100:500, 300:900].all()
        assert found.sum() == 400 * 600


def test_frame_does_not_matter_without_a_scanned_area(tmp_path, slide):
    path = save(tmp_path / "m.png", MASK)
    assert np.array_equal(read_mask(path, slide=slide, frame="qupath"), MASK > 0)


@pytest.mark.parametrize("frame", ["auto", "qupath"])
def test_outlines_are_a_mask(tmp_path, frame):
    ring = [[50, 40], [90, 40], [90, 60], [50, 60], [50, 40]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps(feature | {"properties": {"objectType": "annotation"}}))
    with scan(tmp_path, x=600, y=400, width=200, height=150) as slide:
        found = read_mask(path, slide=slide, frame=frame)
        expected = np.zeros((800, 1200), bool)
        expected[440:460, 650:690] = True
        assert np.array_equal(found, expected)
        path.write_text('{"type": "FeatureCollection", "features": []}')
        with pytest.raises(SlideError, match="the mask is empty; give outlines of tissue"):
            read_mask(path, slide=slide)
    with scan(tmp_path, x=0, y=0, width=200, height=150) as slide:
        path.write_text(json.dumps(feature))
        with pytest.raises(SlideError, match="; give --mask-frame qupath if QuPath made"):
            read_mask(path, slide=slide)
