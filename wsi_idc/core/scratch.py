"""Copies of packs and slides on the fast local disk of a machine (scratch disk)."""

import contextlib
import logging
import os
import shutil
from pathlib import Path

from wsi_idc.core.errors import WsiIdcError

logger = logging.getLogger(__name__)

SCRATCH_ENV = "WSI_IDC_SCRATCH"
# Number of bytes that a copy must leave free on the disk for other users of the machine.
_LEFT_FREE = 256 * 10**6


def scratch_disk(path: Path) -> Path | None:
    """Return the folder for copies; None if no folder is set or ``path`` is already in it."""
    scratch = os.environ.get(SCRATCH_ENV)
    if not scratch or path.resolve().is_relative_to(Path(scratch).resolve()):
        return None
    return Path(scratch)


def own_folder(scratch: Path) -> Path:
    """Create this user's scratch folder; raise WsiIdcError if another user owns the folder."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = scratch / f"wsi-idc-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        raise WsiIdcError(f"{folder} is not a folder of this user; remove it")
    folder.chmod(0o700)
    return folder


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise WsiIdcError if a disk has not enough space for a copy of ``num_bytes``."""
    free, needed = shutil.disk_usage(folder).free, num_bytes + _LEFT_FREE
    if free < needed:
        raise WsiIdcError(
            f"not enough space: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free; "
            f"free some space, or unset {SCRATCH_ENV}"
        )


def warn_not_copied(path: Path, error: Exception) -> None:
    """Log the reason why a file is not copied to the scratch disk."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    logger.warning("%s is not copied to %s: %s", path, SCRATCH_ENV, reason)
