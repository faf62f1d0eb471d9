"""The program, Python, and the packages that it stands on."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from wsi_idc import __version__
from wsi_idc.core.errors import first_line
from wsi_idc.core.provenance import provenance
from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult

# As in setup.cfg; a test holds the two together.
PACKAGES = (
    *("bokeh", "click", "h5py", "jinja2", "kagglehub", "matplotlib", "numpy"),
    *("opencv-python-headless", "openslide-bin", "openslide-python", "optuna", "pandas", "pillow"),
    *("scikit-learn", "scipy", "shapely", "tensorboard", "tifffile", "torch", "torchcam"),
    *("torchvision", "tqdm"),
)


def program() -> Iterator[CheckResult]:
    """Find this program's version, and its commit where it runs from a checkout."""
    try:
        commit = provenance()["git_commit"]
    except metadata.PackageNotFoundError:  # which one, the packages tell
        commit = None
    yield CheckResult(
        "program", f"wsi-idc {__version__}" + (f", commit {commit}" if commit else "")
    )


def python() -> Iterator[CheckResult]:
    """Find Python and the system."""
    yield CheckResult("python", f"{platform.python_version()} ({sys.executable})")
    libc = " ".join(platform.libc_ver()).strip()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield CheckResult("system", system + (f", {libc}" if libc else ""))


def packages() -> Iterator[CheckResult]:
    """Find the versions of the packages that are asked for at installation."""
    found, missing = {}, []
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield CheckResult("packages", ", ".join(f"{name} {version}" for name, version in found.items()))
    if missing:
        names = " ".join(missing)
        yield CheckResult("missing packages", names, PROBLEM, f"pip install {names}")


def openslide() -> Iterator[CheckResult]:
    """Find the library that reads slides."""
    from wsi_idc.slides.openslide_reader import library_version

    try:
        yield CheckResult("OpenSlide", library_version())
    except (ImportError, OSError) as error:
        why = first_line(error)
        yield CheckResult(
            "OpenSlide",
            f"cannot be loaded ({why})",
            NOTE,
            "pip install openslide-python openslide-bin; only slides need it, a pack does not",
        )
