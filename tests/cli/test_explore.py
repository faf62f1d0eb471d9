import json
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from tests.packs import block, make_pack
from wsi_idc.data.pack import Pack


def test_explore_prints_a_summary(cohort: Pack, tmp_path: Path, command: RunCommand):
    out = tmp_path / "look"
    result = command("explore", "--data", cohort.path, "--out", out)
    assert result.code == 0, result.err
    labels = cohort.index["label"]
    lines = dict(line.split("  ", 1) for line in result.out.splitlines() if "  " in line)
    assert lines["patches"].strip() == f"{len(cohort)} of 6 patients"
    idc = (labels == 1).sum()
    assert lines["classes"].strip() == f"{len(labels) - idc} non-IDC, {idc} IDC"
    assert lines["IDC fraction"].strip() == f"{labels.mean():.1%}"
    assert result.out.splitlines()[-2].startswith(f"{out}/summary.json")
    assert result.out.splitlines()[-1] == f"open {out}/index.html"
    again = command("explore", "--data", cohort.path, "--out", out, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == json.loads((out / "summary.json").read_text())


def test_unknown_labels_and_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    assert "no data" in command("explore").error
    make_pack(tmp_path / "a.h5", block("a", 2, 2, -1))
    result = command("explore", "--data", "a.h5")
    assert result.code == 0, result.err
    assert "unknown to unknown" not in result.out
    assert "4 unknown" in result.out
    assert (tmp_path / "explore" / "summary.json").exists()
