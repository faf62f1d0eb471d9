import cv2
import numpy as np
import openslide
import pytest

from tests.cli.commands import run_command
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.synthetic.slide import SlideSummary, write_slide
from wsi_idc.synthetic.tissue import SynthSlide, draw_slide


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SlideSummary:
    path = tmp_path_factory.mktemp("slide") / "S1.tif"
    return write_slide(path, seed=3, width_px=2000, height_px=1600)


@pytest.fixture(scope="module")
def drawn() -> SynthSlide:
    return draw_slide("S1", seed=3, width_px=500, height_px=400)


def test_openslide_reads_the_drawn_pixels(written, drawn):
    with openslide.OpenSlide(written.slide) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.0)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(1.0)
        assert slide.level_dimensions == ((2000, 1600), (1000, 800), (500, 400))
        assert (slide.properties["openslide.level[0].tile-width"]) == "256"
        low = np.asarray(slide.read_region((0, 0), 2, (500, 400)).convert("RGB"))
        corner = slide.read_region((1200, 800), 0, (300, 200)).convert("RGB")
    # Up by four and down again is nearly nothing.
    assert np.abs(low.astype(int) - drawn.rgb).mean() < 4
    up = cv2.resize(drawn.rgb, (2000, 1600), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(np.asarray(corner), up[800:1000, 1200:1500])


def test_the_mask_is_the_truth(written, drawn):
    assert written.mask == written.slide.with_name("S1.mask.png")
    mask = cv2.imread(str(written.mask), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (400, 500)
    assert np.array_equal(mask > 0, drawn.tissue)
    assert np.array_equal(mask == 2, drawn.tissue & drawn.idc)
    assert written.idc_fraction == pytest.approx(drawn.idc[drawn.tissue].mean())


def test_same_arguments_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_slide(tmp_path / folder / "S1.tiff", seed=0, width_px=1000, height_px=1200)
    for name in ("S1.tiff", "S1.mask.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_existing_files_are_not_replaced(tmp_path):
    with pytest.raises(WsiIdcError, match=r"S1.png: a slide is written as TIFF; name it S1.tif"):
        write_slide(tmp_path / "S1.png", seed=0)
    (tmp_path / "S1.mask.png").touch()
    with pytest.raises(WsiIdcError, match=r"S1.mask.png: exists already"):
        write_slide(tmp_path / "S1.tif", seed=0)
    with pytest.raises(ValueError, match="not multiples of 4"):
        write_slide(tmp_path / "S2.tif", seed=0, width_px=1001)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_command(capsys, "synth", "--slide", "S1.tif")
    assert result.code == 0
    assert "S1.tif: 4000x3000 px at 1 um/px" in result.out
    assert "S1.mask.png: the true labels" in result.out
    for wrong in (["synth"], ["synth", "cohort", "--slide", "S2.tif"]):
        result = run_command(capsys, *wrong)
        assert result.code == 2
        assert "give FOLDER for a cohort or --slide FILE" in result.err
