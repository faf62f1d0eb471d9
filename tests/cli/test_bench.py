import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsi_idc.bench.fixtures import open_material
from wsi_idc.cli.bench import bench
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split

pytestmark = pytest.mark.usefixtures("no_workers")


def test_map_as_json_and_nothing_is_left(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("wsi_idc.bench.map.best_batch_size", lambda *_: 64)
    size = ["--patches", "60", "--plain-patches", "10", "--rounds", "1"]
    command = ["map", "--data", str(cohort.path), *size, "--json", "-q"]
    result = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["what"] == "map"
    assert found["ratios"].keys() == {"command / bare", "command / plain"}
    assert found["differences"]["probability"] < 1e-5
    assert list(tmp_path.iterdir()) == []


def test_without_data_it_draws_some_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wsi_idc.bench.fixtures._DEFAULT_PATCHES", 200)
    command = ["loader", "--patches", "100", "--rounds", "1"]
    result = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "no data here: measuring on 200 synthetic patches" in result.stderr
    assert "200 synthetic patches of 10 patients" in result.stdout


@pytest.mark.parametrize("num_patches", [500, 1500, 9940, 20_000])
def test_synthetic_patches_can_be_split(tmp_path: Path, num_patches: int):
    pack, about = open_material(None, synthetic=num_patches, folder=tmp_path)
    assert len(pack) == num_patches
    assert about.endswith(f"of {max(10, -(-num_patches // 994))} patients")
    assert len(make_split(pack).patients("val")) >= 1


def test_data_that_are_not_there_are_an_error(tmp_path: Path):
    command = ["map", "--data", str(tmp_path / "no.h5"), "-q"]
    with pytest.raises(DataError, match="no such file"):
        CliRunner().invoke(bench, command, catch_exceptions=False)
