"""Tests of the resolution of a slide; ``test_slide.py`` opens slides with given resolutions."""

import pytest

from wsi_idc.slides.resolution import mpp_caution

STATED = "given, but the file states 0.5"


@pytest.mark.parametrize("mpp", [8.0, 0.25])
def test_a_strong_contradiction_has_a_caution(mpp: float):
    caution = f"read at {mpp:g} um/px, but the slide file states 0.5"
    assert mpp_caution(mpp, STATED) == caution


@pytest.mark.parametrize("source", [STATED, "file", "given", "given, but the file states nan", ""])
def test_other_sources_have_no_caution(source: str):
    assert mpp_caution(0.6, source) == ""
