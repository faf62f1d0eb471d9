import configparser
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

import torch

from wsi_idc import __version__
from wsi_idc.data.open_data import cache_folder
from wsi_idc.doctor import packages as program
from wsi_idc.doctor import project as work
from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult
from wsi_idc.models.registry import architecture


def test_a_pack(pack, monkeypatch):
    rows = [
        CheckResult("data", f"{pack.path}, 7 patches of 3 patients, 50 px at 4 um/px"),
        CheckResult("data fingerprint", pack.info.source_fingerprint),
    ]
    assert list(work.data(pack.path)) == rows
    assert list(work.data(pack.path.parent)) == rows
    monkeypatch.setenv("WSI_IDC_DATA", str(pack.path))
    assert list(work.data(None)) == rows


def test_a_tree_is_not_packed(tree, tmp_path):
    said = "a patch tree; it is packed when it is first used"
    assert list(work.data(tree)) == [CheckResult("data", f"{tree}, {said}")]
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tree))
    (row,) = work.data(archive)
    assert row.value == f"{archive}, a zip; it is packed when it is first used"
    assert not cache_folder().exists()


def test_no_data(pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = work.data(None)
    assert (row.value, row.state) == ("none at data", NOTE)
    monkeypatch.setenv("WSI_IDC_DATA", "nowhere")
    (row,) = work.data(None)
    assert (row.value, row.state) == ("none at nowhere", PROBLEM)
    (row,) = work.data(tmp_path / "none.h5")
    assert (row.value, row.state) == ("cannot be used", PROBLEM)
    assert row.advice == f"{tmp_path}/none.h5: no such file; make one with wsi-idc prepare"
    (tmp_path / "empty").mkdir()
    (row,) = work.data(tmp_path / "empty")
    assert row.value == f"{tmp_path}/empty holds neither a pack nor patches"
    shutil.copy(pack.path, pack.path.with_name("b.h5"))
    (row,) = work.data(pack.path.parent)
    assert "holds 2 packs (b.h5, idc.h5); choose one with --data" in row.advice


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    (row,) = work.weights()
    assert (row.value, row.state) == (f"none in {folder}", NOTE)
    folder.mkdir()
    for name in ("resnet50", "efficientnet-b0"):
        (folder / architecture(name).imagenet.url.rsplit("/", 1)[-1]).touch()
    (folder / "vgg16-397923af.pth").touch()
    (folder / "mine.pth").touch()
    found = [CheckResult("ImageNet weights", f"resnet50, efficientnet-b0, vgg16 in {folder}")]
    assert list(work.weights()) == found


def test_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    newest, default = work.runs()
    assert newest == CheckResult("newest finished run", "none in runs/")
    assert re.fullmatch(r"the bundled model, \d\.\d MB", default.value)
    shutil.copytree(trained.source.parent, "runs/mine")
    newest, default = work.runs()
    assert newest == CheckResult("newest finished run", "runs/mine")
    assert re.fullmatch(r"runs/mine/best\.pt, \d\.\d MB", default.value)


def test_the_packages_are_those_that_are_installed_with_the_program():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    wanted = setup["options"]["install_requires"].split()
    assert list(program.PACKAGES) == [line.partition(">=")[0] for line in wanted]


def test_versions(monkeypatch):
    found = {"click": "8.1", "numpy": "2.0"}

    def version(name: str) -> str:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(program, "PACKAGES", ("click", "h5py", "numpy"))
    assert list(program.packages()) == [
        CheckResult("packages", "click 8.1, numpy 2.0"),
        CheckResult("missing packages", "h5py", PROBLEM, "pip install h5py"),
    ]
    monkeypatch.setattr(program, "provenance", lambda: {"git_commit": None})
    assert list(program.program()) == [CheckResult("program", f"wsi-idc {__version__}")]
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.0")
    monkeypatch.setattr(program.sys, "executable", "/opt/python")
    assert next(program.python()) == CheckResult("python", "3.11.0 (/opt/python)")
    monkeypatch.setattr(program, "provenance", lambda: {"git_commit": "abc"})
    assert list(program.program()) == [CheckResult("program", f"wsi-idc {__version__}, commit abc")]


def test_openslide_that_cannot_be_loaded(monkeypatch):
    def broken() -> str:
        raise ImportError("Couldn't locate OpenSlide shared library")

    monkeypatch.setattr("wsi_idc.slides.openslide_reader.library_version", broken)
    (row,) = program.openslide()
    assert row.value == "cannot be loaded (Couldn't locate OpenSlide shared library)"
    assert row.state == NOTE
