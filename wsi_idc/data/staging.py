"""Node-local scratch: a pack is copied there once, and read from there.

A network disk that many tasks read at random is slow for all of its users; a disk, or the memory,
of the node itself is not. ``WSI_IDC_SCRATCH`` names a folder on it. Nothing that goes wrong there
stops a command: the pack itself is read instead, and a warning says why.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from wsi_idc.core.errors import BusyError, DataError, WsiIdcError
from wsi_idc.core.files import atomic_write
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.core.progress import progress
from wsi_idc.data.pack import Pack

logger = logging.getLogger(__name__)

SCRATCH_ENV = "WSI_IDC_SCRATCH"
_MB = 10**6
_BLOCK = 16 * _MB
# A node whose scratch is full is of no use to others on it.
_LEFT_FREE = 256 * _MB


def stage_to_scratch(pack: Pack) -> Pack:
    """Return a pack that is read from its copy in ``WSI_IDC_SCRATCH``, made if need be.

    The tasks on one node share one copy: the first one makes it, the others wait for it. Without
    the variable, or where no copy can be had, the pack itself is returned.
    """
    scratch = os.environ.get(SCRATCH_ENV)
    if not scratch:
        return pack
    try:
        return _staged(pack, Path(scratch))
    except (WsiIdcError, OSError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        logger.warning("%s is read where it is, not from %s: %s", pack.path, SCRATCH_ENV, reason)
        return pack


def _staged(pack: Pack, scratch: Path) -> Pack:
    if pack.path.resolve().is_relative_to(scratch.resolve()):
        return pack
    copy = _own_folder(scratch) / f"{_key(pack)}.h5"

    def open_or_copy() -> Pack:
        if (staged := _opened(pack, copy)) is None:
            _copy(pack, copy)
            staged = _opened(pack, copy)
        if staged is None:
            raise WsiIdcError(f"the copy {copy} differs from the pack")
        return staged

    staged = retry_while_busy(
        open_or_copy, log_as=f"another process that copies {pack.path} to {copy}"
    )
    logger.info("%s is read from the copy %s", pack.path, copy)
    return staged


def _own_folder(scratch: Path) -> Path:
    """Return this user's folder in the scratch folder, made if need be.

    Raises:
        WsiIdcError: It is another one's, who could give us whatever data they like.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = scratch / f"wsi-idc-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        raise WsiIdcError(f"{folder} is not a folder of this user's; remove it")
    folder.chmod(0o700)
    return folder


def _key(pack: Pack) -> str:
    """Return what a copy is named by: the same for the same data, wherever the pack lies."""
    what = json.dumps([vars(pack.info), len(pack), pack.path.stat().st_size], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:24]


def _opened(pack: Pack, copy: Path) -> Pack | None:
    """Open a copy; None where it is missing, damaged, or of the pack as it was before."""
    if not _is_of(pack, copy):
        return None
    try:
        found = Pack(pack.path, copy)
    except DataError as error:
        logger.warning("%s; copying it again", error)
        return None
    same = found.info == pack.info and found.patients == pack.patients
    return found if same and found.index.equals(pack.index) else None


def _is_of(pack: Pack, copy: Path) -> bool:
    try:
        there = copy.stat()
    except FileNotFoundError:
        return False
    here = pack.path.stat()
    # Not every disk keeps fractions of a second.
    return (there.st_size, int(there.st_mtime)) == (here.st_size, int(here.st_mtime))


def _copy(pack: Pack, copy: Path) -> None:
    """Copy the pack in one atomic step.

    Raises:
        BusyError: Another process is doing so, or has just done it.
        WsiIdcError: There is not enough room.
    """
    with atomic_write(copy) as partial:
        if _opened(pack, copy) is not None:
            raise BusyError(f"{copy}: made by another process meanwhile")
        # What is damaged, or what a killed process left, takes room.
        copy.unlink(missing_ok=True)
        partial.write_bytes(b"")
        before = pack.path.stat()
        free = shutil.disk_usage(copy.parent).free
        if free < before.st_size + _LEFT_FREE:
            raise WsiIdcError(
                f"not enough room, {free / _MB:.0f} MB free of the "
                f"{(before.st_size + _LEFT_FREE) / _MB:.0f} MB needed; free some, or unset it"
            )
        logger.info("copying %s (%.0f MB) to %s", pack.path, before.st_size / _MB, copy)
        with (
            pack.path.open("rb") as source,
            partial.open("wb") as target,
            progress(before.st_size // _MB, what="copying", unit="MB") as bar,
        ):
            while block := source.read(_BLOCK):
                target.write(block)
                bar.update(len(block) // _MB)
        os.utime(partial, ns=(before.st_atime_ns, before.st_mtime_ns))
