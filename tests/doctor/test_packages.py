import platform
import sys
from importlib import metadata
from unittest.mock import Mock

from wsi_idc import __version__
from wsi_idc.doctor import packages
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult


def test_versions(monkeypatch):
    versions = {"click": "8.1", "numpy": "2.0"}

    monkeypatch.setattr(metadata, "PackageNotFoundError", KeyError)
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    requirements = ["click>=8.1", "h5py>=3.10", "numpy>=1.26", 'pytest>=8.0; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", {"wsi-idc": requirements}.get)
    assert list(packages.packages()) == [
        CheckResult("packages", "click 8.1, numpy 2.0"),
        CheckResult("missing packages", "h5py", PROBLEM, "pip install h5py"),
    ]
    for commit, end in ((None, ""), ("abc", ", commit abc")):
        monkeypatch.setattr(packages, "provenance", lambda commit=commit: {"git_commit": commit})
        assert list(packages.program()) == [CheckResult("program", f"wsi-idc {__version__}{end}")]
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.0")
    monkeypatch.setattr(sys, "executable", "/opt/python")
    assert next(packages.python()) == CheckResult("python", "3.11.0 (/opt/python)")


def test_a_missing_openslide_is_a_note(monkeypatch):
    broken = Mock(side_effect=ImportError("no shared library"))
    monkeypatch.setattr("wsi_idc.slides.openslide_reader.library_version", broken)
    (row,) = packages.openslide()
    assert (row.value, row.state) == ("cannot be loaded (no shared library)", NOTE)
