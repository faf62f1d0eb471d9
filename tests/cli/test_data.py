import json
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from tests.packs import block, make_pack, make_tree
from wsi_idc.data.pack import Pack


def test_a_tree_is_packed_without_damaged_files(tmp_path: Path, command: RunCommand):
    tree = make_tree(tmp_path / "tree")
    damaged = next(tree.rglob("*.png"))
    damaged.write_text("no image")
    name = str(damaged.relative_to(tree))
    out = tmp_path / "data" / "idc.h5"
    result = command("prepare", tree, "--out", out)
    assert result.code == 0
    assert "left out: 1 x unreadable" in result.out
    assert name in result.out
    assert damaged.name in (tmp_path / "data" / "rejected.csv").read_text()
    strict = command("prepare", tree, "--out", out, "--strict", "--json")
    assert strict.code == 1
    assert "1 files were left out (--strict)" in strict.error
    assert json.loads(strict.out)["rejected"][0]["path"] == name


def test_a_zip_is_packed_unless_a_name_leads_out_of_it(tmp_path: Path, command: RunCommand):
    tree = make_tree(tmp_path / "tree")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tree)
    result = command("prepare", archive, "--out", tmp_path / "idc.h5", "--json")
    assert result.code == 0
    assert json.loads(result.out)["num_patches"] == 7
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../evil.png", b"x")
    result = command("prepare", archive, "--out", tmp_path / "evil.h5")
    assert result.code == 1
    assert "refused, it holds a file named '../evil.png'" in result.error
    assert not (tmp_path / "evil.h5").exists()


NO_PATCHES = (
    "Error: no patches: there is no tree or zip of them in data/; get the data set with "
    "wsi-idc download, or give TREE"
)


@pytest.mark.parametrize("data", ["none", "empty", "a pack", "another name"])
def test_the_default_tree_must_have_patches(
    tmp_path: Path, cohort: Pack, data: str, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    if data != "none":
        Path("data").mkdir()
    if data == "a pack":
        shutil.copy(cohort.path, "data")
    if data == "another name":
        Path("data", "a.png").touch()
        message = "data: no patch found, but 'a.png' (unknown name)"
        assert message in command("prepare").error
    else:
        assert command("prepare").error == NO_PATCHES


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
    assert result.out.splitlines()[-1].startswith(f"{out}/summary.json")
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
