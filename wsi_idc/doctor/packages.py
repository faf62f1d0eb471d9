"""Checks of the program, of Python and of the installed packages."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

from wsi_idc import __version__
from wsi_idc.core.errors import first_line
from wsi_idc.core.provenance import provenance
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult


def program() -> Iterator[CheckResult]:
    """Report the version of the program. If it runs from a Git checkout, report the commit too."""
    try:
        commit = provenance()["git_commit"]
    except metadata.PackageNotFoundError:  # the check ``packages`` reports the missing package
        commit = None
    version = f"wsi-idc {__version__}"
    yield CheckResult("program", f"{version}, commit {commit}" if commit else version)


def python() -> Iterator[CheckResult]:
    """Report the versions of Python and of the operating system."""
    yield CheckResult("python", f"{platform.python_version()} ({sys.executable})")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    libc = " ".join(platform.libc_ver()).strip()
    yield CheckResult("system", f"{system}, {libc}" if libc else system)


def packages() -> Iterator[CheckResult]:
    """Report the versions of the required packages, and the packages that are missing."""
    versions, missing = [], []
    requirements = metadata.requires("wsi-idc") or []
    required = [line for line in requirements if "extra ==" not in line]
    for name in (re.split(r"[^\w-]", line)[0] for line in required):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield CheckResult("packages", ", ".join(versions))
    if missing:
        names = " ".join(missing)
        yield CheckResult("missing packages", names, PROBLEM, f"pip install {names}")


def openslide() -> Iterator[CheckResult]:
    """Report the version of OpenSlide, the library that reads slides."""
    from wsi_idc.slides.openslide_reader import library_version

    try:
        yield CheckResult("OpenSlide", library_version())
    except (ImportError, OSError) as error:
        advice = "pip install openslide-python openslide-bin; only the reading of slides needs it"
        yield CheckResult("OpenSlide", f"cannot be loaded ({first_line(error)})", NOTE, advice)
