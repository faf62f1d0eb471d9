import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from wsi_idc.data.pack import Pack
from wsi_idc.doctor import doctor
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult

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
    note = {"name": "threads of torch", "value": "1", "state": "note", "advice": "unset it"}
    assert record["findings"][1] == note


def test_long_values_and_advice_are_aligned_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    def run_checks(*, data: Path | None, out: Path) -> Iterator[CheckResult]:
        yield CheckResult("packages", "torch 2.14.1, " * 5, NOTE, "update " * 12)

    monkeypatch.setattr(doctor, "run_checks", run_checks)
    assert command("doctor").out.splitlines() == [
        "note     packages  " + "torch 2.14.1, " * 4 + "torch",
        " " * 19 + "2.14.1,",
        "note: packages: " + " ".join(["update"] * 9),
        "      " + " ".join(["update"] * 3),
        "no problem found",
    ]


def test_all_checks_on_this_machine(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    result = command("doctor", "--data", cohort.path, "--json")
    assert result.code == 0
    values = {row["name"]: row["value"] for row in json.loads(result.out)["findings"]}
    assert not [row for row in values.items() if row[1].startswith("the check failed")]
    assert {"program", "packages", "cores", "memory", "torch", "file locks"} <= set(values)
    assert values["data fingerprint"] == cohort.info.source_fingerprint[:12]
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
