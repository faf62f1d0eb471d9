import platform
import sys
from importlib import metadata

from wsi_idc import __version__
from wsi_idc.doctor import packages
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult


def test_versions(monkeypatch):
    versions = {"click": "8.1", "numpy": "2.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    requirements = ["click>=8.1", "h5py>=3.10", "numpy>=1.26", 'pytest>=8.0; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", {"wsi-idc": requirements}.get)
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
