import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import RunCommand
from tests.export.maps import small_map as built_map
from tests.export.maps import stored
from tests.small_maps import small_map, write_hand_map
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
    assert sorted(path.name for path in Path("p").iterdir()) == sorted(
        ["A.png", "A.pdf", "A-contours.png", "A-contours.pdf"]
    )


def test_a_bad_map_and_a_missing_view_are_set_aside(maps: Path, command: RunCommand):
    (maps / "AA.h5").write_text("no map")
    result = command("render", "--view", "cam", "--view", "overlay", "--dpi", 40)
    assert result.code == 1
    assert result.out.split() == ["maps/A-cam.png", "maps/A-overlay.png", "maps/B-overlay.png"]
    reasons = [line for line in result.err.splitlines() if line.startswith("not drawn: ")]
    assert len(reasons) == 3
    assert reasons[0].startswith("not drawn: maps/AA.h5: not a usable map")
    assert reasons[2].startswith("not drawn: maps/B.h5: made without a CAM")
    assert result.error == "Error: 3 of 6 views of maps not drawn; the reasons are above"


def test_two_maps_never_become_one_picture(maps: Path, command: RunCommand):
    write_map(Path("other/A.h5"), small_map(patient="A"))
    result = command("render", maps / "A.h5", "other/A.h5", "--out", "p")
    assert "maps/A.h5 and other/A.h5 would both be drawn as p/A.png" in result.error
    write_map(maps / "A-cam.h5", small_map(patient="A-cam"))
    result = command(
        "render", maps / "A.h5", maps / "A-cam.h5", "--view", "cam", "--view", "panels"
    )
    assert "maps/A.h5 and maps/A-cam.h5 would both be drawn as maps/A-cam.png" in result.error
    assert not Path("p").exists()
    assert command("render", maps / "A.h5", maps / "A.h5", "--dpi", 40).out == "maps/A.png\n"


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
    odd = small_map(patient="C", probability=nothing, cam=np.full((4, 2, 2), np.inf))
    write_map(maps / "C.h5", odd)
    words = [word for view in VIEWS for word in ("--view", view)]
    assert command("render", maps / "C.h5", *words, "--dpi", 40).code == 0


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with two maps in maps/."""
    (tmp_path / "maps").mkdir()
    monkeypatch.chdir(tmp_path)
    for patient in ("P1", "P2"):
        patches = np.zeros((1, 50, 50, 3), np.uint8)
        stored(built_map([[0, 0]], [0.9], patient=patient, patches=patches), tmp_path / "maps")
    return tmp_path


def test_every_map_in_every_format(work: Path, command: RunCommand):
    result = command("export")
    assert result.code == 0, result.err
    files = result.out.splitlines()
    assert len(files) == 14
    assert files[:3] == ["export/P1.geojson", "export/P1.csv", "export/P1.tissue.ome.tif"]
    assert all(Path(file).is_file() for file in files)


def test_one_map_as_asked_for(work: Path, command: RunCommand):
    words = ["export", "maps/P1.h5", "--format", "geojson", "--gzip", "--out", "a", "--json"]
    result = command(*words, "--threshold", 0.95)
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"written": {"maps/P1.h5": ["a/P1.geojson.gz"]}, "failed": {}}
    assert [path.name for path in Path("a").iterdir()] == ["P1.geojson.gz"]


def test_a_bad_map_is_set_aside(work: Path, command: RunCommand):
    Path("maps/A.h5").write_text("no map")
    result = command("export", "--format", "csv")
    assert result.code == 1
    assert result.out.splitlines() == ["export/P1.csv", "export/P2.csv"]
    assert "not exported: maps/A.h5: not a usable map" in result.err
    assert "1 of 3 maps not exported; the reasons are above" in result.error
    result = command("export", "--format", "csv", "--json")
    assert result.code == 1
    assert list(json.loads(result.out)["failed"]) == ["maps/A.h5"]


def test_a_model_folder(work: Path, command: RunCommand):
    result = command("export", "--format", "wsinfer", "--checkpoint", "bundled")
    assert result.code == 0, result.err
    assert "the bundled model" in result.err
    assert result.out.splitlines() == [
        "wsinfer/torchscript_model.pt",
        "wsinfer/config.json",
        "wsinfer/README.md",
    ]
    assert json.loads(Path("wsinfer/config.json").read_text())["architecture"] == "mobilenet_v2"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--format", "wsinfer", "maps/P1.h5"], 2, "give it without maps and other formats"),
        (["--format", "wsinfer", "--format", "csv"], 2, "give it without maps and other formats"),
        (["--checkpoint", "bundled"], 2, "--checkpoint goes with --format wsinfer"),
        (["--threshold", "1.5"], 2, "1.5 is not in the range"),
        (["--format", "csv", "--gzip"], 2, "--gzip is of GeoJSON; add --format geojson"),
        (["--format", "wsinfer", "--threshold", "0.5"], 2, "--threshold is of GeoJSON"),
        (["none.h5", "--format", "csv"], 1, "1 of 1 maps not exported"),
        (["--format", "wsinfer", "--checkpoint", "none.pt"], 1, "none.pt: no such file"),
    ],
)
def test_a_user_error_is_one_line(
    work: Path,
    command: RunCommand,
    arguments: list[str],
    code: int,
    error: str,
):
    before = sorted(work.rglob("*"))
    result = command("export", *arguments)
    assert result.code == code
    assert error in result.error
    assert sorted(work.rglob("*")) == before


@pytest.fixture
def hand_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with two maps."""
    monkeypatch.chdir(tmp_path)
    for patient in ("P1", "P2"):
        write_hand_map(tmp_path / "maps", patient=patient)
    return tmp_path


def test_every_map_is_reported(hand_maps: Path, command: RunCommand):
    result = command("report")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "report/P1.html",
        "report/P2.html",
        "maps/cohort.csv, maps/cohort.h5: 2 patients",
        "open report/index.html",
    ]
    # The table among the maps is not taken for one, now or by another command.
    assert command("report").code == 0
    assert command("render", "--dpi", 30).code == 0


def test_named_maps_are_a_report_of_their_own(hand_maps: Path, command: RunCommand):
    result = command("report", "maps/P2.h5", "--out", "one", "--threshold", 0.85, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {
        "pages": {"P2": "one/P2.html"},
        "index": "one/index.html",
        "csv": "one/cohort.csv",
        "hdf5": "one/cohort.h5",
        "failed": {},
    }
    assert not (hand_maps / "maps" / "cohort.csv").exists()
    assert ",0.85," in (hand_maps / "one" / "cohort.csv").read_text()


def test_another_threshold_leaves_the_table_of_the_maps_as_it_is(
    hand_maps: Path, command: RunCommand
):
    command("report")
    before = {
        name: (hand_maps / "maps" / name).read_bytes() for name in ("cohort.csv", "cohort.h5")
    }
    result = command("report", "--threshold", 0.85)
    assert "report/cohort.csv, report/cohort.h5: 2 patients" in result.out
    assert ",0.85," in (hand_maps / "report" / "cohort.csv").read_text()
    assert {name: (hand_maps / "maps" / name).read_bytes() for name in before} == before


def test_a_bad_map_is_left_out_of_the_report(hand_maps: Path, command: RunCommand):
    (hand_maps / "maps" / "P0.h5").write_text("no map")
    result = command("report")
    assert result.code == 1
    assert "report/P2.html" in result.out
    assert "not in the report: maps/P0.h5: not a usable map" in result.err
    assert result.error == "Error: 1 of 3 maps are not in the report; the reasons are above"


def test_no_maps_and_bad_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    assert "no maps in maps/" in command("report").error
    assert command("report", "--threshold", 1.5).code == 2


def test_folders_are_their_maps_and_tables_are_passed_over(hand_maps: Path, command: RunCommand):
    assert command("report").code == 0  # writes maps/cohort.h5
    pages = ["one/P1.html", "one/P2.html"]
    for maps in (["maps"], sorted(Path("maps").glob("*.h5")), ["maps/P1.h5", "maps"]):
        result = command("report", *maps, "--out", "one")
        assert (result.code, result.out.split()[:2]) == (0, pages), result.err
    result = command("render", "maps", "--dpi", 30, "--out", "p")
    assert (result.code, result.out.split()) == (0, ["p/P1.png", "p/P2.png"])
    result = command("export", "maps/cohort.h5", "maps/P2.h5", "--format", "csv", "--out", "e")
    assert (result.code, result.out.split()) == (0, ["e/P2.csv"])
    Path("none").mkdir()
    assert (
        "no maps in none, maps/cohort.h5; make" in command("report", "none", "maps/cohort.h5").error
    )
