import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import RunCommand
from tests.packs import save_png
from wsi_idc.data.pack import Pack
from wsi_idc.doctor import doctor
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult
from wsi_idc.maps.cohort import write_cohort_h5

ROW = {"area_mm2": 0.25, "idc_area_mm2": 0.125, "idc_fraction": 0.5}


@pytest.mark.parametrize("patches", ["text", np.nan, np.inf, None])
def test_info_of_a_forged_cohort_file_is_one_line(
    tmp_path: Path, command: RunCommand, patches: object
):
    path = tmp_path / "cohort.h5"
    row = {"patient": "P1", **ROW} | ({} if patches is None else {"patches": patches})
    write_cohort_h5(path, pd.DataFrame([row]), {"P1": tmp_path / "P1.h5"})
    assert "without the columns of a cohort" in command("info", path).error


def test_info_of_a_cohort_file_has_totals(tmp_path: Path, command: RunCommand):
    table = pd.DataFrame([{"patient": name, "patches": 6, **ROW} for name in ("P1", "P2")])
    path = tmp_path / "cohort.h5"
    write_cohort_h5(path, table, {name: tmp_path / f"{name}.h5" for name in ("P1", "P2")})
    assert json.loads(command("info", path, "--json").out) == {
        "kind": "cohort",
        "file": str(path),
        "maps": 2,
        "patches": 12,
        "area_mm2": 0.5,
        "idc_area_mm2": 0.25,
        "called_idc_of": {"P1": 0.5, "P2": 0.5},
    }


def test_info_of_a_damaged_pack_is_an_error(work: Path, command: RunCommand):
    pack = work / "data" / "cohort.h5"
    for size in (-1, 3000):
        pack.write_bytes(pack.read_bytes()[:size])
        assert f"{pack}: HDF5 cannot read it (" in command("info", pack).error
    with h5py.File(pack, "w") as file:
        file.attrs["format"] = "another"
    assert f"{pack}: neither a pack, a checkpoint" in command("info", pack).error


def test_info_of_an_image_without_resolution(tmp_path: Path, command: RunCommand):
    image = save_png(tmp_path / "scan.png", np.zeros((30, 40, 3), np.uint8))
    record = json.loads(command("info", image, "--json").out)
    assert len(record.pop("fingerprint")) == 64
    assert record == {
        "kind": "slide",
        "file": str(image),
        "width": 40,
        "height": 30,
        "mpp": None,
        "mpp_source": "the file does not state its microns per pixel",
        "levels": ["40 x 30"],
    }
    image.write_bytes(image.read_bytes()[:30])
    assert "scan.png: " in command("info", image).error


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from wsi_idc.cli.main import main
sys.argv = ["wsi-idc", "doctor"]
main()
"""


def test_results_as_text_and_json(monkeypatch: pytest.MonkeyPatch, command: RunCommand):
    def run_checks(*, data: Path | None, out: Path) -> Iterator[CheckResult]:
        yield CheckResult("data", f"{data}")
        yield CheckResult("threads of torch", "1", NOTE, "unset it")
        yield CheckResult("locks", f"none in {out}\x1b[2J", PROBLEM, "take another")

    monkeypatch.setattr(doctor, "run_checks", run_checks)
    result = command("doctor", "--data", "x.h5", "--out", "y")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "ok       data              x.h5",
        "note     threads of torch  1",
        "problem  locks             none in y?[2J",
        "note: threads of torch: unset it",
        "problem: locks: take another",
        "1 problem found",
    ]
    record = json.loads(command("doctor", "--json").out)
    assert (record["num_notes"], record["num_problems"]) == (1, 1)
    assert record["findings"][1] == {
        "name": "threads of torch",
        "value": "1",
        "state": "note",
        "advice": "unset it",
    }


def test_all_checks_on_this_machine(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    result = command("doctor", "--data", cohort.path, "--json")
    assert result.code == 0
    values = {row["name"]: row["value"] for row in json.loads(result.out)["findings"]}
    assert not [row for row in values.items() if row[1].startswith("the check failed")]
    assert {"program", "packages", "cores", "memory", "torch", "file locks"} <= set(values)
    assert values["data fingerprint"] == cohort.info.source_fingerprint
    assert "torch " in values["packages"]
    assert list(tmp_path.iterdir()) == []


def test_a_broken_torch_stops_no_other_check(tmp_path: Path):
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       file locks") for line in lines)
    assert any(line.startswith("problem  torch  ") for line in lines)
    assert lines[-1].endswith(" problems found")
