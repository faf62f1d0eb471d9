"""Where a result came from: command, versions, machine, time."""

import functools
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from wsi_idc import __version__

_LIBRARIES = ("torch", "torchvision", "numpy", "h5py")


def provenance(**more: Any) -> dict[str, Any]:
    """Return a JSON-ready record of this process, extended by ``more``."""
    return {
        "program": "wsi-idc",
        "version": __version__,
        "git_commit": _git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": dict(_library_versions()),
        **more,
    }


@functools.cache
def _library_versions() -> dict[str, str]:
    # Each look parses a file of a hundred kilobytes, and every map has a record.
    return {name: metadata.version(name) for name in _LIBRARIES}


@functools.cache
def _git_commit() -> str | None:
    """Return the commit of the checkout this package runs from, None where it is installed."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
