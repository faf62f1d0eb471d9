import re
import shutil
from pathlib import Path

import torch

from wsi_idc.data.open_data import cache_folder
from wsi_idc.doctor import project
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult
from wsi_idc.models.registry import architecture
from wsi_idc.training.runs import set_default


def test_a_pack(pack, monkeypatch):
    rows = [
        CheckResult("data", f"{pack.path}, 7 patches of 3 patients, 50 px at 4 um/px"),
        CheckResult("data fingerprint", pack.info.source_fingerprint[:12]),
    ]
    assert list(project.data(pack.path)) == rows
    assert list(project.data(pack.path.parent)) == rows
    monkeypatch.setenv("WSI_IDC_DATA", str(pack.path))
    assert list(project.data(None)) == rows


def test_a_tree_is_not_packed(tree, tmp_path):
    value = f"{tree}, a patch tree; the first command that reads it makes a pack"
    assert list(project.data(tree)) == [CheckResult("data", value)]
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tree))
    (row,) = project.data(archive)
    assert row.value == f"{archive}, a zip; the first command that reads it makes a pack"
    assert not cache_folder().exists()


def test_no_data(pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = project.data(None)
    assert (row.value, row.state) == ("none at data", NOTE)
    monkeypatch.setenv("WSI_IDC_DATA", "nowhere")
    (row,) = project.data(None)
    assert (row.value, row.state) == ("none at nowhere", PROBLEM)
    (row,) = project.data(tmp_path / "none.h5")
    assert (row.value, row.state) == ("cannot be used", PROBLEM)
    assert row.advice == f"{tmp_path}/none.h5: no such file; make one with wsi-idc prepare"
    (tmp_path / "empty").mkdir()
    (row,) = project.data(tmp_path / "empty")
    assert row.value == f"{tmp_path}/empty holds neither a pack nor patches"
    shutil.copy(pack.path, pack.path.with_name("b.h5"))
    (row,) = project.data(pack.path.parent)
    assert "holds 2 packs (b.h5, idc.h5); choose one with --data" in row.advice


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    (row,) = project.weights()
    assert (row.value, row.state) == (f"none in {folder}", NOTE)
    folder.mkdir()
    for name in ("resnet50", "efficientnet-b0"):
        (folder / architecture(name).imagenet.url.rsplit("/", 1)[-1]).touch()
    (folder / "vgg16-397923af.pth").touch()
    (folder / "mine.pth").touch()
    expected = [CheckResult("ImageNet weights", f"resnet50, efficientnet-b0, vgg16 in {folder}")]
    assert list(project.weights()) == expected


def test_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (default,) = project.runs()
    assert re.fullmatch(r"the bundled model, \d\.\d MB", default.value)
    shutil.copytree(trained.source.parent, "runs/mine")
    (default,) = project.runs()
    assert "the bundled model" in default.value
    set_default(Path("runs"), Path("runs/mine"))
    (default,) = project.runs()
    assert re.fullmatch(r"runs/mine/best\.pt, \d\.\d MB", default.value)
    shutil.rmtree("runs/mine")
    (default,) = project.runs()
    assert (default.state, "no checkpoint" in default.value) == (PROBLEM, True)
