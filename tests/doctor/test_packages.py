import configparser
import platform
import sys
from importlib import metadata
from pathlib import Path

from wsi_idc import __version__
from wsi_idc.doctor import packages
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult


def test_packages_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    required = setup["options"]["install_requires"].split()
    assert list(packages.PACKAGES) == [line.partition(">=")[0] for line in required]


def test_versions(monkeypatch):
    versions = {"click": "8.1", "numpy": "2.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(packages, "PACKAGES", ("click", "h5py", "numpy"))
    assert list(packages.packages()) == [
        CheckResult("packages", "click 8.1, numpy 2.0"),
        CheckResult("missing packages", "h5py", PROBLEM, "pip install h5py"),
    ]
    monkeypatch.setattr(packages, "provenance", lambda: {"git_commit": None})
    assert list(packages.program()) == [CheckResult("program", f"wsi-idc {__version__}")]
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.0")
    monkeypatch.setattr(sys, "executable", "/opt/python")
    assert next(packages.python()) == CheckResult("python", "3.11.0 (/opt/python)")
    monkeypatch.setattr(packages, "provenance", lambda: {"git_commit": "abc"})
    assert list(packages.program()) == [
        CheckResult("program", f"wsi-idc {__version__}, commit abc")
    ]


def test_a_missing_openslide_is_a_note(monkeypatch):
    def broken() -> str:
        raise ImportError("Couldn't locate OpenSlide shared library")

    monkeypatch.setattr("wsi_idc.slides.openslide_reader.library_version", broken)
    (row,) = packages.openslide()
    assert row.value == "cannot be loaded (Couldn't locate OpenSlide shared library)"
    assert row.state == NOTE
