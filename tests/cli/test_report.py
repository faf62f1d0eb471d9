import json
from pathlib import Path

import pytest

from tests.cli.test_main import Said
from tests.maps.hand import write_hand_map


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with two maps."""
    monkeypatch.chdir(tmp_path)
    for patient in ("P1", "P2"):
        write_hand_map(tmp_path / "maps", patient=patient)
    return tmp_path


def test_every_map_is_reported(work: Path, capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, "report")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        "report/P1.html",
        "report/P2.html",
        "maps/cohort.csv, maps/cohort.h5: 2 patients",
        "open report/index.html",
    ]
    # The table among the maps is not taken for one, now or by another command.
    assert Said(capsys, "report").code == 0
    assert Said(capsys, "render", "--dpi", 30).code == 0


def test_named_maps_are_a_report_of_their_own(work: Path, capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, "report", "maps/P2.h5", "--out", "one", "--threshold", 0.85, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == {
        "pages": {"P2": "one/P2.html"},
        "index": "one/index.html",
        "csv": "one/cohort.csv",
        "hdf5": "one/cohort.h5",
        "failed": {},
    }
    assert not (work / "maps" / "cohort.csv").exists()
    assert ",0.85," in (work / "one" / "cohort.csv").read_text()


def test_another_threshold_leaves_the_table_of_the_maps_as_it_is(
    work: Path, capsys: pytest.CaptureFixture[str]
):
    Said(capsys, "report")
    before = {name: (work / "maps" / name).read_bytes() for name in ("cohort.csv", "cohort.h5")}
    said = Said(capsys, "report", "--threshold", 0.85)
    assert "report/cohort.csv, report/cohort.h5: 2 patients" in said.out
    assert ",0.85," in (work / "report" / "cohort.csv").read_text()
    assert {name: (work / "maps" / name).read_bytes() for name in before} == before


def test_a_bad_map_is_set_aside_and_the_rest_goes_on(
    work: Path, capsys: pytest.CaptureFixture[str]
):
    (work / "maps" / "P0.h5").write_text("no map")
    said = Said(capsys, "report")
    assert said.code == 1
    assert "report/P2.html" in said.out
    assert "not in the report: maps/P0.h5: not a usable map" in said.err
    assert said.error == "Error: 1 of 3 maps are not in the report; the reasons are above"


def test_no_maps_and_bad_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert "no maps in maps/" in Said(capsys, "report").error
    assert Said(capsys, "report", "--threshold", 1.5).code == 2


def test_folders_are_their_maps_and_tables_are_passed_over(
    work: Path, capsys: pytest.CaptureFixture[str]
):
    assert Said(capsys, "report").code == 0  # writes maps/cohort.h5
    pages = ["one/P1.html", "one/P2.html"]
    for maps in (["maps"], sorted(Path("maps").glob("*.h5")), ["maps/P1.h5", "maps"]):
        said = Said(capsys, "report", *maps, "--out", "one")
        assert (said.code, said.out.split()[:2]) == (0, pages), said.err
    said = Said(capsys, "render", "maps", "--dpi", 30, "--out", "p")
    assert (said.code, said.out.split()) == (0, ["p/P1.png", "p/P2.png"])
    said = Said(capsys, "export", "maps/cohort.h5", "maps/P2.h5", "--format", "csv", "--out", "e")
    assert (said.code, said.out.split()) == (0, ["e/P2.csv"])
    Path("none").mkdir()
    assert (
        "no maps in none, maps/cohort.h5; make"
        in Said(capsys, "report", "none", "maps/cohort.h5").error
    )
