from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import RunCommand
from tests.small_maps import small_map, write_two_slides
from wsi_idc.cli.render import render
from wsi_idc.maps.map_writer import write_map
from wsi_idc.render.render import DEFAULT_DPI, DEFAULT_VIEW, FORMATS, VIEWS


@pytest.fixture
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return maps/ of two patients in the working folder; the second has no CAM."""
    monkeypatch.chdir(tmp_path)
    write_map(Path("maps/A.h5"), small_map(patient="A"))
    write_map(Path("maps/B.h5"), small_map(patient="B", cam=None))
    return Path("maps")


def test_views_and_formats_are_named_after_the_map(maps: Path, command: RunCommand):
    result = command("render", "--dpi", 40)
    assert (result.code, result.out) == (0, "maps/A.png\nmaps/B.png\n")
    views = ["--view", "panels", "--view", "contours", "--view", "contours"]
    formats = ["--format", "png", "--format", "pdf", "--format", "png"]
    result = command("render", maps / "A.h5", *views, *formats, "--out", "p", "--dpi", 40)
    assert result.out.split() == ["p/A.png", "p/A.pdf", "p/A-contours.png", "p/A-contours.pdf"]
    assert sorted(map(str, Path("p").iterdir())) == sorted(result.out.split())


def test_a_bad_map_and_a_missing_view_are_set_aside(maps: Path, command: RunCommand):
    (maps / "AA.h5").write_text("no map")
    result = command("render", "--view", "cam", "--view", "overlay", "--dpi", 40)
    assert result.code == 1
    assert result.out.split() == ["maps/A-cam.png", "maps/A-overlay.png", "maps/B-overlay.png"]
    reasons = [line for line in result.err.splitlines() if line.startswith("not drawn: ")]
    assert len(reasons) == 3
    assert reasons[0].startswith("not drawn: maps/AA.h5: not a usable map")
    assert reasons[2].startswith("not drawn: maps/B.h5: has no CAM")
    assert result.error == "Error: 3 of 6 views of maps were not drawn; the reasons are above"


def test_two_maps_never_become_one_picture(maps: Path, command: RunCommand):
    write_map(Path("other/A.h5"), small_map(patient="A"))
    result = command("render", maps / "A.h5", "other/A.h5", "--out", "p")
    assert "maps/A.h5 and other/A.h5 would both be drawn as p/A.png" in result.error
    write_map(maps / "A-cam.h5", small_map(patient="A-cam"))
    views = ("--view", "cam", "--view", "panels")
    result = command("render", maps / "A.h5", maps / "A-cam.h5", *views)
    assert "maps/A.h5 and maps/A-cam.h5 would both be drawn as maps/A-cam.png" in result.error
    assert not Path("p").exists()
    assert command("render", maps / "A.h5", maps / "A.h5", "--dpi", 40).out == "maps/A.png\n"


def test_pictures_of_slides_are_in_the_folder_of_the_patient(maps: Path, command: RunCommand):
    write_two_slides(maps, "P")
    result = command("render", maps / "P.h5", "--dpi", 40)
    assert result.out.split() == ["maps/P/a.png", "maps/P/b.png"]
    result = command("render", "--dpi", 40, "--out", "p")
    assert result.out.split() == ["p/A.png", "p/B.png", "p/P/a.png", "p/P/b.png"]


def test_the_threshold_is_a_probability(maps: Path, command: RunCommand):
    assert command("render", "--threshold", 1.5).code == 2
    pictures = []
    for threshold in (0.1, 0.9):
        command("render", maps / "A.h5", "--threshold", threshold, "--dpi", 40)
        pictures.append((maps / "A.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_options_are_those_of_the_package():
    options = {option.name: option for option in render.params}
    assert tuple(options["views"].type.choices) == tuple(VIEWS)
    assert tuple(options["formats"].type.choices) == FORMATS
    assert options["views"].default == (DEFAULT_VIEW,)
    assert options["dpi"].default == DEFAULT_DPI


def test_a_map_of_nan_is_drawn(maps: Path, command: RunCommand):
    nothing = np.full(4, np.nan, np.float32)
    odd = small_map(
        patient="C", probability=nothing, novelty=nothing, cam=np.full((4, 2, 2), np.inf)
    )
    write_map(maps / "C.h5", odd)
    words = [word for view in VIEWS for word in ("--view", view)]
    assert command("render", maps / "C.h5", *words, "--dpi", 40).code == 0
