"""File locks: exclusive, released when the process ends."""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wsi_idc.core.errors import BusyError, WsiIdcError

# A file system that has no locks (some network disks) answers with one of these.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def locked(lock: Path, *, what: Path) -> Iterator[int]:
    """Hold an exclusive lock on the file ``lock``, made if need be, on behalf of ``what``.

    Yields:
        The lock's file descriptor.

    Raises:
        BusyError: Another process holds the lock.
        WsiIdcError: The lock's file cannot be made.
    """
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise WsiIdcError(
                f"{what}: cannot be written there ({error.strerror}); choose another place"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BusyError(
                f"{what}: another process is writing it; wait for that one to end"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise
        # The holder before us may have renamed the file under our feet: then lock the new one.
        if is_same_file(fd, lock):
            break
        os.close(fd)
    try:
        yield fd
    finally:
        os.close(fd)


def is_held(lock: Path) -> bool:
    """Return whether another process holds a lock of ``locked``."""
    if not lock.exists():
        return False
    try:
        with locked(lock, what=lock):
            return False
    except BusyError:
        return True


def can_lock(folder: Path) -> bool:
    """Return whether files can be locked in ``folder``, which need not exist yet.

    The folder itself tells nothing: on network disks it is locked, within this machine, where its
    files cannot be.
    """
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return locks_work(probe.fileno())
    except OSError:
        return True  # whoever writes there will say why that is not possible


def locks_work(fd: int) -> bool:
    """Return whether the file system of an open file has locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def is_same_file(fd: int, path: Path) -> bool:
    """Return whether ``path`` leads to the open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
