"""Provenance record of a result: command, versions, machine, time."""

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
# Cached, because each call parses 100 kB of metadata, and each map stores a provenance record.
_library_version = functools.cache(metadata.version)


def provenance(**more: Any) -> dict[str, Any]:
    """Return a JSON-compatible record of this process; keyword arguments ``more`` are added."""
    timm = ["timm"] if sys.modules.get("timm") else []  # optional; networks depend on its version
    return {
        "program": "wsi-idc",
        "version": __version__,
        "git_commit": _git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _library_version(name) for name in (*_LIBRARIES, *timm)},
        **more,
    }


@functools.cache
def _git_commit() -> str | None:
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():  # an installed package has no repository
        return None
    git = ["git", "-C", str(package), "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(git, stderr=subprocess.DEVNULL, text=True, timeout=5).strip()
    except (OSError, subprocess.SubprocessError):
        return None
