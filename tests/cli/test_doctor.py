import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_main import Said
from wsi_idc.data.pack import Pack
from wsi_idc.doctor import doctor as module
from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(*, data: Path | None, out: Path) -> Iterator[CheckResult]:
        yield CheckResult("data", f"{data}")
        yield CheckResult("threads of torch", "1", NOTE, "unset it")
        yield CheckResult("locks", f"none in {out}\x1b[2J", PROBLEM, "take another")

    monkeypatch.setattr(module, "examine", examine)


@pytest.mark.usefixtures("three")
def test_what_it_says(capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, "doctor", "--data", "x.h5", "--out", "y")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "ok       data              x.h5",
        "note     threads of torch  1",
        "problem  locks             none in y?[2J",
        "note: threads of torch: unset it",
        "problem: locks: take another",
        "1 problem found",
    ]
    found = json.loads(Said(capsys, "doctor", "--json").out)
    assert (found["num_notes"], found["num_problems"]) == (1, 1)
    assert found["findings"][1] == {
        "name": "threads of torch",
        "value": "1",
        "state": "note",
        "advice": "unset it",
    }


def test_the_real_thing(
    cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    said = Said(capsys, "doctor", "--data", cohort.path, "--json")
    assert said.code == 0
    found = {row["name"]: row["value"] for row in json.loads(said.out)["findings"]}
    assert not [row for row in found.items() if row[1].startswith("could not be found")]
    assert {"program", "packages", "cores", "memory", "torch", "file locks"} <= set(found)
    assert found["data fingerprint"] == cohort.info.source_fingerprint
    assert "torch " in found["packages"]
    assert list(tmp_path.iterdir()) == []


def test_with_a_broken_torch_all_else_is_said(tmp_path: Path):
    code = "\n".join(
        [
            "import sys",
            "sys.modules['torch'] = None",
            "from wsi_idc.cli import main",
            "sys.argv = ['wsi-idc', 'doctor']",
            "main()",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       file locks") for line in lines)
    assert any(line.startswith("problem  torch  ") for line in lines)
    assert lines[-1].endswith(" problems found")
