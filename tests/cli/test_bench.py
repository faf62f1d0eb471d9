import json
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand

pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture(autouse=True)
def _one_batch_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wsi_idc.bench.map.best_batch_size", lambda *_: 64)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


SMALL = ("--patches", 60, "--plain-patches", 10, "--rounds", 1)


def test_map_as_json_leaves_no_files(work: Path, command: RunCommand):
    before = sorted(work.rglob("*"))
    result = command("bench", "map", *SMALL, "--json", "-q")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["what"] == "map"
    assert record["ratios"].keys() == {"command / bare", "command / plain"}
    assert record["differences"]["probability"] < 1e-5
    assert sorted(work.rglob("*")) == before


def test_train_as_text(work: Path, command: RunCommand):
    options = ["--model", "cnn", "--steps", 8, "--plain-steps", 0, "--batch-size", 16]
    result = command("bench", "train", *options, "--split", "ratio:50/25/25")
    assert result.code == 0, result.err
    assert "command / bare" in result.out
    assert not (work / "runs").exists()


def test_patches_are_drawn_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wsi_idc.bench.fixtures._DEFAULT_PATCHES", 200)
    result = command("bench", "map", "--model", "cnn", *SMALL)
    assert result.code == 0, result.err
    assert "found no data; measuring with 200 synthetic patches" in result.err
    assert "200 synthetic patches of 10 patients" in result.out
    assert "no such file" in command("bench", "map", "--data", "no.h5", "-q").error
