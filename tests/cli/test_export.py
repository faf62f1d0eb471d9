import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import RunCommand
from tests.export.maps import small_map as built_map
from tests.export.maps import stored


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with two maps in maps/."""
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
    assert "1 of 3 maps were not exported; the reasons are above" in result.error
    result = command("export", "--format", "csv", "--json")
    assert result.code == 1
    assert list(json.loads(result.out)["failed"]) == ["maps/A.h5"]


def test_a_model_folder(work: Path, command: RunCommand):
    result = command("export", "--format", "wsinfer", "--checkpoint", "bundled")
    assert result.code == 0, result.err
    assert "the bundled model" in result.err
    names = ("torchscript_model.pt", "config.json", "README.md")
    assert result.out.splitlines() == [f"wsinfer/{name}" for name in names]
    assert json.loads(Path("wsinfer/config.json").read_text())["architecture"] == "mobilenet-v2-s16"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--format", "wsinfer", "maps/P1.h5"], 2, "leave out maps and other formats"),
        (["--format", "wsinfer", "--format", "csv"], 2, "leave out maps and other formats"),
        (["--checkpoint", "bundled"], 2, "--checkpoint needs --format wsinfer"),
        (["--threshold", "1.5"], 2, "1.5 is not in the range"),
        (["--format", "csv", "--gzip"], 2, "--gzip needs GeoJSON; add --format geojson"),
        (["--format", "wsinfer", "--threshold", "0.5"], 2, "--threshold needs GeoJSON"),
        (["none.h5", "--format", "csv"], 1, "1 of 1 maps were not exported"),
        (["--format", "wsinfer", "--checkpoint", "none.pt"], 1, "none.pt: no such file"),
    ],
)
def test_a_user_error_is_one_line(
    work: Path, command: RunCommand, arguments: list[str], code: int, error: str
):
    before = sorted(work.rglob("*"))
    result = command("export", *arguments)
    assert result.code == code
    assert error in result.error
    assert sorted(work.rglob("*")) == before
