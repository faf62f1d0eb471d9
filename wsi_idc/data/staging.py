"""Copies of packs on a fast local disk."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from wsi_idc.core.errors import BusyError, DataError, WsiIdcError
from wsi_idc.core.files import atomic_write
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.core.scratch import check_space, own_folder, scratch_disk, warn_not_copied
from wsi_idc.data.pack import Pack

logger = logging.getLogger(__name__)


def stage_to_scratch(pack: Pack) -> Pack:
    """Copy a pack to the scratch folder, and return a ``Pack`` that reads the copy.

    If no scratch folder is set, if the pack is already in this folder, or if the copying fails,
    the result is ``pack`` itself.
    """
    scratch = scratch_disk(pack.path)
    if scratch is None:
        return pack
    try:
        # The name of the copy depends on the data of the pack, not on its path.
        text = json.dumps([vars(pack.info), len(pack), pack.path.stat().st_size], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        copy = own_folder(scratch) / f"{key}.h5"
        other = f"another process that copies {pack.path} to {copy}"
        staged = retry_while_busy(lambda: _open_copy(pack, copy) or _copy(pack, copy), log_as=other)
    except (WsiIdcError, OSError) as error:
        warn_not_copied(pack.path, error)
        return pack
    logger.info("%s is read from the copy %s", pack.path, copy)
    return staged


def _open_copy(pack: Pack, copy: Path) -> Pack | None:
    """Open the copy of a pack; return None if the copy cannot be used.

    The copy must be undamaged, and must have the size and the modification time of the pack.
    """
    if not copy.exists() or _size_and_time(copy) != _size_and_time(pack.path):
        return None
    try:
        return Pack(pack.path, copy)
    except DataError as error:
        logger.warning("%s; copying the pack again", error)
        return None


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, int(status.st_mtime)  # some disks store no fractions of a second


def _copy(pack: Pack, copy: Path) -> Pack:
    with atomic_write(copy) as partial:
        if _open_copy(pack, copy) is not None:
            raise BusyError(f"{copy}: another process has just made this copy")
        # Free the disk space of a damaged copy, and of a partial copy that a killed process left.
        copy.unlink(missing_ok=True)
        partial.write_bytes(b"")
        source = pack.path.stat()
        check_space(copy.parent, source.st_size)
        logger.info("copying %s (%.0f MB) to %s", pack.path, source.st_size / 1e6, copy)
        shutil.copyfile(pack.path, partial)
        os.utime(partial, ns=(source.st_atime_ns, source.st_mtime_ns))
    staged = _open_copy(pack, copy)
    if staged is None:
        raise WsiIdcError(f"the copy {copy} differs from the pack")
    return staged
