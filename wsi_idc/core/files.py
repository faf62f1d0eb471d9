"""Atomic writes, locked temporary files, strict JSON, and safe file names.

Only one process can hold a lock. When this process ends, the operating system releases the lock.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from wsi_idc.core.errors import DataError, DiskFullError, WorkerError, WsiIdcError
from wsi_idc.core.locks import can_lock, is_held, is_same_file, locked

FileVersion = tuple[Path, int, int]  # path, inode, time of the last change in ns
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAX_NAME_BYTES = 128
_NAME = re.compile(r"[^./\\][^/\\]*")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, fsync the file and rename the file to ``path``.

    The temporary file is ``.NAME.partial`` in the folder of ``path``. During the block, the file is
    locked. If the block raises an error, the file is removed. If a killed process left a temporary
    file, this file is overwritten.

    Raises:
        BusyError: Another process is writing the same file.
        WsiIdcError: The file cannot be written, or the disk is full.
    """
    with temporary_path(path) as partial:
        yield partial
        _sync(partial)
        partial.replace(path)
        with contextlib.suppress(OSError):  # not every file system can sync a folder
            _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def temporary_path(path: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield the path of a locked temporary file; remove this file when the block ends.

    Args:
        path: Final file; the temporary file is ``.NAME.partial`` in the same folder.
        resumable: Whether the temporary file is kept if the block is stopped (Ctrl-C, a stop
            signal, a killed worker process). The next call yields the kept file with its content.
    """
    partial = _partial(path)
    with locked(partial, what=path) as fd:
        keep = False
        try:
            with full_disk_as_error(path):
                yield partial
        except (KeyboardInterrupt, WorkerError):
            keep = resumable
            raise
        finally:
            # If the block has renamed its file, a file at ``partial`` belongs to another process.
            if not keep and is_same_file(fd, partial):
                partial.unlink()


@contextlib.contextmanager
def full_disk_as_error(path: Path) -> Iterator[None]:
    """Context manager that converts the error of a full disk into a DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        reason = os.strerror(error.errno).lower()
        raise DiskFullError(f"{path}: {reason}; free some space and run again") from None


def remove_partial(path: Path) -> None:
    """Remove the temporary file of ``path`` if no process uses this temporary file."""
    if _partial(path).exists():
        with contextlib.suppress(WsiIdcError, OSError), temporary_path(path):
            pass


def is_being_written(path: Path) -> bool:
    """Return whether another process is using the temporary path of ``path``."""
    return is_held(_partial(path))


def _partial(path: Path) -> Path:
    # Without file locks, machine name and process id give each process its own temporary file.
    own = "" if can_lock(path.parent) else f".{platform.node()}-{os.getpid()}"
    return path.with_name(f".{path.name}{own}.partial")


def ensure_writable(folder: Path, *, writes: Collection[str], marks: Collection[str]) -> None:
    """Check that a command can write its files into ``folder``; call this before the work starts.

    Args:
        folder: Output folder; it need not exist yet.
        writes: Names of the files that the command writes.
        marks: Names in ``writes`` that only this command uses. If one of these files exists, the
            folder holds an earlier output of the command, and all files may be replaced.

    Raises:
        WsiIdcError: The folder is not writable, or has a file in ``writes`` but none in ``marks``.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise WsiIdcError(f"{existing} is a file; give a folder as --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WsiIdcError(f"{existing} cannot be written to; give another --out")
    taken = [name for name in writes if (folder / name).exists()]
    if taken and not any((folder / name).exists() for name in marks):
        raise WsiIdcError(
            f"{folder / taken[0]} exists and was not written by this command; give another --out"
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to ``path`` in one atomic step."""
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write text to ``path`` in one atomic step; escape the characters that UTF-8 cannot encode."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON in one atomic step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or contains NaN or infinity.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        reason = "too large a number" if text[-1].isdigit() else "not JSON"
        raise ValueError(f"{text[:40]} is {reason}")
    return number


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_version(path: Path) -> FileVersion:
    """Return a key that changes when the file is replaced or written again."""
    status = path.stat()
    return path, status.st_ino, status.st_mtime_ns


def regular_file(path: Path, max_bytes: float = math.inf) -> Path:
    """Return ``path`` if it is a regular file of at most ``max_bytes`` bytes.

    Other files are refused, because the opening of a pipe can wait forever.

    Raises:
        OSError: The file is missing, too large, or not a regular file.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > max_bytes:
        raise OSError(errno.EINVAL, f"larger than {max_bytes / 1e6:g} MB", str(path))
    return path


def starts_with(path: Path, *starts: bytes) -> bool:
    """Return whether ``path`` is a regular file that begins with one of the bytes ``starts``."""
    if not path.is_file():  # reading a pipe would block
        return False
    with path.open("rb") as file:
        return file.read(max(map(len, starts))).startswith(starts)


def safe_filename(name: str, *, kind: str = "patient id") -> str:
    """Return ``name`` if it can be a file name; ``kind`` describes the name in error messages.

    Raises:
        DataError: The name is empty, too long or not printable, begins with a dot, contains a
            separator, or cannot be encoded in the locale of this process.
    """
    is_plain = _NAME.fullmatch(name) and name.isprintable()
    is_long = is_plain and len(name.encode()) > _MAX_NAME_BYTES
    if not is_plain or is_long:
        reason = f"has over {_MAX_NAME_BYTES} bytes" if is_long else "is not a valid file name"
        thing = kind.partition(" ")[0]
        raise DataError(f"{name!r} cannot be a {kind}, because it {reason}; rename the {thing}")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        reason = f"the locale cannot encode the file name {name!r}"
        raise DataError(f"{reason}; set LC_ALL=C.UTF-8") from None
    return name
