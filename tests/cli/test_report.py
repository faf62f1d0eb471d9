import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import RunCommand
from tests.small_maps import write_hand_map
from wsi_idc.data.artifacts import FLAGS


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
        "maps/cohort.csv, maps/cohort.h5, maps/patients.csv: 2 patients",
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
        "patients": "one/patients.csv",
        "failed": {},
        "stale": [],
    }
    assert not (hand_maps / "maps" / "cohort.csv").exists()
    assert ",0.85," in (hand_maps / "one" / "cohort.csv").read_text()


def test_another_threshold_leaves_the_table_of_the_maps_as_it_is(
    hand_maps: Path, command: RunCommand
):
    command("report")
    tables = [hand_maps / "maps" / name for name in ("cohort.csv", "cohort.h5")]
    before = [table.read_bytes() for table in tables]
    result = command("report", "--threshold", 0.85)
    assert "report/cohort.csv, report/cohort.h5, report/patients.csv: 2 patients" in result.out
    assert ",0.85," in (hand_maps / "report" / "cohort.csv").read_text()
    assert [table.read_bytes() for table in tables] == before


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
    result = command("report", "none", "maps/cohort.h5")
    assert "no maps in none, maps/cohort.h5; make" in result.error


def test_flagged_patches_are_left_out_on_demand(hand_maps: Path, command: RunCommand):
    flags = np.array([0, FLAGS["blur"], FLAGS["pen"], 0, 0], np.uint8)
    write_hand_map(hand_maps / "maps", patient="P1", flags=flags, flag_bits=FLAGS)
    assert command("report").code == 0
    table = pd.read_csv("maps/cohort.csv")
    assert table["idc_area_mm2"].tolist() == pytest.approx([0.12, 0.12])
    assert table["flagged"].to_numpy() == pytest.approx([2, np.nan], nan_ok=True)
    before = Path("maps/cohort.csv").read_bytes()
    result = command("report", "--exclude-flagged")
    # The other map is of an older version.
    assert result.code == 1
    assert "not in the report: maps/P2.h5: has no quality flags" in result.err
    assert Path("maps/cohort.csv").read_bytes() == before
    table = pd.read_csv("report/cohort.csv")
    assert table["idc_area_mm2"].tolist() == pytest.approx([0.08])
    assert table["excluded_flags"].tolist() == [" ".join(FLAGS)]
    index = Path("report/index.html").read_text()
    assert "flagged: 1 blur, 1 pen, left out of areas and regions" in index
    assert "Areas leave out patches with a quality flag" in index
    info = command("info", "report/cohort.h5").out
    assert "flagged         1 blur, 1 pen" in info
    assert f"excluded flags  {' '.join(FLAGS)}" in info
    # Outlines of regions leave out the patches too.
    for words in ([], ["--exclude-flagged"]):
        result = command("export", "maps/P1.h5", "--format", "geojson", *words)
        assert result.code == 0, result.err
        features = json.loads(Path("export/P1.geojson").read_text())["features"]
        assert len(features) == 5 + (2 if words else 3)
        tiles = [feature["properties"]["measurements"] for feature in features[:5]]
        assert [tile["flag_blur"] for tile in tiles] == [0, 1, 0, 0, 0]
    assert command("render", "maps/P1.h5", "--exclude-flagged", "--dpi", 30).code == 0
