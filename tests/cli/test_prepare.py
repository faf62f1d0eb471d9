import json
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from tests.packs import make_tree
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


def test_patients_without_a_packed_file_are_named(tmp_path: Path, command: RunCommand):
    tree = make_tree(tmp_path / "tree")
    for file in (tree / "9").rglob("*.png"):
        file.write_text("no image")
    result = command("prepare", tree, "--out", tmp_path / "idc.h5")
    assert result.code == 1
    assert result.error.startswith("Error: no file of 1 patients could be packed: 9; the pack has")
    assert Pack(tmp_path / "idc.h5").patients == ["10253", "10254"]


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
    assert "refused, because the file name '../evil.png' in it" in result.error
    assert not (tmp_path / "evil.h5").exists()


NO_PATCHES = (
    "Error: no patches: data/ has no patch tree and no zip; get the data set with "
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
        message = "data: no patch found; the first wrong file is 'a.png' (unknown name: not"
        assert message in command("prepare").error
    else:
        assert command("prepare").error == NO_PATCHES
