"""Atomic writes of files, strict JSON, and file names that stay in their folder."""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import DataError, DiskFullError, WorkerError, WsiIdcError
from wsi_idc.core.locks import can_lock, is_held, is_same_file, locked

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAX_NAME_BYTES = 128


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; after the block it is synced to disk and renamed to ``path``.

    The temporary file ``.NAME.partial`` beside ``path`` is locked meanwhile, and removed if the
    block raises. A file that a killed process left under this name is overwritten.

    Raises:
        BusyError: Another process is writing the same file.
        WsiIdcError: The file cannot be written there, or the disk is full.
    """
    with temporary_path(path) as partial:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_folder(path.parent)


@contextlib.contextmanager
def temporary_path(
    path: Path, *, keep_after: tuple[type[BaseException], ...] = ()
) -> Iterator[Path]:
    """Yield the locked temporary path ``.NAME.partial`` beside ``path``; remove it afterwards.

    Args:
        path: File that the temporary one belongs to.
        keep_after: Exceptions after which the partial file is kept for resuming.

    Raises:
        BusyError: Another process is using the temporary path.
        WsiIdcError: The file cannot be written there, or the disk is full.
    """
    partial = _partial(path)
    with locked(partial, what=path) as fd:
        keep = False
        try:
            yield partial
        except keep_after:
            keep = True
            raise
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            reason = os.strerror(error.errno).lower()
            raise DiskFullError(f"{path}: {reason}; free some space and run again") from None
        finally:
            # After a rename, a file of this name belongs to another process.
            if not keep and is_same_file(fd, partial):
                partial.unlink()


def resumable_path(path: Path) -> contextlib.AbstractContextManager[Path]:
    """Yield a path as ``temporary_path`` does, but keep the file after a stop for the next call.

    A stop is Ctrl-C, a stop signal or a killed worker process. At the start of the block the file
    has the content that an earlier, stopped block left in it.
    """
    return temporary_path(path, keep_after=(KeyboardInterrupt, WorkerError))


def remove_partial(path: Path) -> None:
    """Remove the file that ``resumable_path`` kept for ``path``, unless a process is using it."""
    if _partial(path).exists():
        with contextlib.suppress(WsiIdcError, OSError), temporary_path(path):
            pass


def is_being_written(path: Path) -> bool:
    """Return whether another process is using the temporary path of ``path``."""
    return is_held(_partial(path))


def _partial(path: Path) -> Path:
    # Without file locks, only its own name protects a process's file from other processes.
    own = "" if can_lock(path.parent) else f".{platform.node()}-{os.getpid()}"
    return path.with_name(f".{path.name}{own}.partial")


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, if the file system can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def ensure_writable(folder: Path, *, writes: Collection[str], marks: Collection[str]) -> None:
    """Raise if a command cannot write its files into ``folder``; called before the work begins.

    Args:
        folder: Output folder, which need not exist yet.
        writes: Names of the files that the command writes.
        marks: Names among them that mark an earlier output of the command, which may be replaced.

    Raises:
        WsiIdcError: The folder is not writable, or has files of these names from something else.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise WsiIdcError(f"{existing} is a file; give a folder as --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WsiIdcError(f"{existing} cannot be written to; give another --out")
    taken = [name for name in writes if (folder / name).exists()]
    if taken and not any((folder / name).exists() for name in marks):
        raise WsiIdcError(
            f"{folder / taken[0]} exists and was not written by this command; choose another --out "
            "(it would be overwritten)"
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to ``path`` in one atomic step."""
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write text to ``path`` as UTF-8 in one atomic step; lone surrogates become JSON escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON in one atomic step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: Invalid JSON, NaN or infinity, or nesting too deep to serialize.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def starts_with(path: Path, *starts: bytes) -> bool:
    """Return whether ``path`` is a regular file that begins with one of ``starts``."""
    if not path.is_file():  # reading a pipe would block
        return False
    with path.open("rb") as file:
        return file.read(max(map(len, starts))).startswith(starts)


def safe_filename(name: str) -> str:
    """Return a patient id unchanged if it can name a file in its folder.

    Raises:
        DataError: The id is empty, hidden, too long, or has a separator or control character.
    """
    is_bad = (
        not name
        or name.startswith(".")
        or any(char in "/\\" for char in name)
        or not name.isprintable()
        or len(name.encode()) > _MAX_NAME_BYTES
    )
    if is_bad:
        raise DataError(
            f"{name!r} cannot be a patient id, because it cannot name a file; rename the patient"
        )
    return name
