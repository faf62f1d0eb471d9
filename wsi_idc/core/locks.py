"""File locks, and functions that wait for other processes."""

import contextlib
import errno
import fcntl
import functools
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from wsi_idc.core.errors import BusyError, WsiIdcError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Errors of a file system that does not support locks; some network disks have such a file system.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_SECONDS_BETWEEN_TRIES = 0.2


@contextlib.contextmanager
def locked(lock: Path, *, what: Path) -> Iterator[int]:
    """Hold an exclusive lock inside the block.

    Args:
        lock: The lock file; it is created if it does not exist.
        what: The output that the lock protects; error messages name this output.

    Yields:
        File descriptor of the lock.

    Raises:
        BusyError: Another process holds the lock.
        WsiIdcError: The lock file cannot be created.
    """
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise WsiIdcError(
                f"{what}: cannot be written ({error.strerror}); choose another folder"
            ) from None
        with os.fdopen(fd, "rb"):  # closes ``fd`` at the end of the block
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"{what}: another process is writing it; wait until that process ends"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            # The previous holder may have renamed the lock file. If so, lock the new lock file.
            if is_same_file(fd, lock):
                yield fd
                return


@contextlib.contextmanager
def wait_for_lock(lock: Path, *, what: Path, **options: Any) -> Iterator[None]:
    """Hold an exclusive lock inside the block; wait while another process holds it.

    ``lock`` and ``what`` are passed to ``locked``, and ``options`` to ``retry_while_busy``.
    """
    with contextlib.ExitStack() as stack:
        retry_while_busy(lambda: stack.enter_context(locked(lock, what=what)), **options)
        yield


def retry_while_busy(
    action: Callable[[], Result],
    *,
    timeout: float = math.inf,
    log_as: str = "",
    log_after: float = 0.0,
    on_wait: Callable[[], None] | None = None,
) -> Result:
    """Call ``action`` repeatedly until it raises no ``BusyError``; return its result.

    Args:
        action: Function that raises ``BusyError`` while another process does the same work.
        timeout: Longest time of waiting in s; after this time the ``BusyError`` is raised.
        log_as: Name of the other process's work, for the log line "waiting for LOG_AS".
        log_after: Time of waiting in s, after which the line "waiting for LOG_AS" is logged once.
        on_wait: Function that is called before each pause. An error in this function ends the wait.
    """
    started = time.monotonic()
    while True:
        try:
            return action()
        except BusyError:
            seconds = time.monotonic() - started
            if seconds > timeout:
                raise
        if on_wait:
            on_wait()
        if log_as and seconds >= log_after:
            logger.info("waiting for %s", log_as)
            log_as = ""
        time.sleep(_SECONDS_BETWEEN_TRIES)


def is_held(lock: Path) -> bool:
    """Return whether another process holds a lock on the file ``lock``."""
    if not lock.exists():
        return False
    with contextlib.suppress(BusyError), locked(lock, what=lock):
        return False
    return True


def can_lock(folder: Path) -> bool:
    """Return whether files in a folder can be locked; the folder need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    with contextlib.suppress(OSError):  # the write fails later, with a better message
        return supports_locks(folder.absolute())
    return True


@functools.cache
def supports_locks(folder: Path) -> bool:
    """Return whether a file in ``folder`` can be locked.

    Raises:
        OSError: No file can be created in the folder.
    """
    # The test locks a file, because some network disks can lock folders but not files.
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def is_same_file(fd: int, path: Path) -> bool:
    """Return whether ``path`` exists and is the file that is open as descriptor ``fd``."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False
