"""The slide of a real scanner, if available."""

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


def test_aperio_slide_states_size_and_mpp():
    with open_slide(SVS) as slide:
        assert (slide.width, slide.height) == (2220, 2967)
        assert (slide.mpp, slide.mpp_source) == (0.499, "file")
        assert len(slide.levels) == 1
        assert slide.thumbnail(300).shape == (300, 224, 3)


def test_tissue_is_where_a_person_sees_it():
    with open_slide(SVS) as slide:
        thumbnail, mask = find_tissue(slide)
        assert mask.shape == thumbnail.shape[:2] == (1024, 766)
        assert mask.mean() == pytest.approx(0.40, abs=0.03)
        # A stalk from the lower left to the top, glass to both sides of it.
        assert mask[640, 320:576].all()
        assert not mask[:, :8].any()
        assert not mask[:288, 640:].any()


def test_patches_are_the_means_of_their_boxes():
    with open_slide(SVS) as slide:
        patches = SlidePatches(slide, patch_px=50, mpp=4.0)
        assert patches.shape == (8, 6)
        assert len(patches) == 27
        found = np.concatenate(list(patches.batches(8)))
        for (x, y), patch in zip(patches.coords, found, strict=True):
            box = slide.read(0, x, y, width=401, height=401)
            assert np.abs(patch.mean(axis=(0, 1)) - box.mean(axis=(0, 1))).max() < 0.5


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, fraction):
    data = SVS.read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(SlideError, match=r"cut.svs: a TIFF that is cut short"):
        open_slide(path)


def test_damaged_region_is_an_error_only_where_it_is_read(tmp_path):
    data = bytearray(SVS.read_bytes())
    data[600_000:900_000] = bytes(300_000)
    path = tmp_path / "hole.svs"
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert slide.read(0, 0, 0, width=240, height=240).std() > 0
        with pytest.raises(SlideError, match=r"hole.svs: cannot be read at x 0, y 0 of level 0"):
            slide.read(0, 0, 0, width=slide.width, height=slide.height)
        # Later reads are not affected.
        assert slide.read(0, 0, 0, width=240, height=240).std() > 0
