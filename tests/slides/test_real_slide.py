"""A real scanner's slide, where it is at hand."""

from pathlib import Path

import numpy as np
import pytest

from wsi_idc.core.errors import SlideError
from wsi_idc.slides.patches import SlidePatches
from wsi_idc.slides.slide import open_slide
from wsi_idc.slides.tissue import find_tissue

SVS = Path(__file__).resolve().parents[3] / "shared" / "slides" / "CMU-1-Small-Region.svs"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not SVS.is_file(), reason=f"the real slide is not at {SVS}"),
]


def test_an_aperio_slide_states_what_it_must():
    with open_slide(SVS) as slide:
        assert (slide.width, slide.height) == (2220, 2967)
        assert (slide.mpp, slide.mpp_source) == (0.499, "file")
        assert len(slide.levels) == 1
        assert slide.thumbnail(300).shape == (300, 224, 3)


def test_its_tissue_is_where_one_sees_it():
    with open_slide(SVS) as slide:
        thumbnail, mask = find_tissue(slide)
        assert mask.shape == thumbnail.shape[:2] == (64, 48)
        assert mask.mean() == pytest.approx(0.40, abs=0.03)
        # A stalk from the lower left to the top, glass to both sides of it.
        assert mask[40, 20:36].all()
        assert not mask[:, :2].any()
        assert not mask[:18, 40:].any()


def test_its_patches_are_the_means_of_their_boxes():
    with open_slide(SVS) as slide:
        patches = SlidePatches(slide, patch_px=50, mpp=4.0)
        assert patches.shape == (8, 6)
        assert len(patches) == 27
        found = np.concatenate(list(patches.batches(8)))
        for (x, y), patch in zip(patches.coords, found, strict=True):
            box = slide.read(0, x, y, width=401, height=401)
            assert np.abs(patch.mean(axis=(0, 1)) - box.mean(axis=(0, 1))).max() < 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_short_it_is_an_error_in_a_line(tmp_path, share):
    content = SVS.read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SlideError, match=r"cut.svs: a TIFF that is cut short, damaged or of"):
        open_slide(path)


def test_a_hole_in_it_shows_where_it_is_read(tmp_path):
    content = bytearray(SVS.read_bytes())
    content[600_000:900_000] = bytes(300_000)
    path = tmp_path / "hole.svs"
    path.write_bytes(content)
    with open_slide(path) as slide:
        assert slide.read(0, 0, 0, width=240, height=240).std() > 0
        with pytest.raises(SlideError, match=r"hole.svs: cannot be read at x 0, y 0 of level 0"):
            slide.read(0, 0, 0, width=slide.width, height=slide.height)
        # The error is not the next reader's.
        assert slide.read(0, 0, 0, width=240, height=240).std() > 0
