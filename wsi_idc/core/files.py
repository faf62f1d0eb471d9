"""Write files so that they are never half there, under names that stay in their folder."""

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

from wsi_idc.core.errors import (
    DataError,
    DiskFullError,
    WorkerError,
    WsiIdcError,
)
from wsi_idc.core.locks import can_lock, is_held, is_same_file, locked

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAX_NAME_BYTES = 128


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path``, fsynced, when the block ends well.

    The temporary name is ``.NAME.partial`` beside ``path``. It is locked meanwhile, and removed
    when the block raises; one that a killed process left behind is simply written over.

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
    """Yield the locked temporary path ``.NAME.partial`` beside ``path``, gone after the block.

    Args:
        path: Beside which.
        keep_after: What may end the block and leave the file, as it is, for the next block.

    Raises:
        BusyError: Another process is using it.
        WsiIdcError: The file cannot be written there, or the disk is full.
    """
    partial = _partial(path)
    with locked(partial, what=path) as fd:
        keep = False
        try:
            with _full_disk_in_a_line(path):
                yield partial
        except keep_after:
            keep = True
            raise
        finally:
            # After a rename, a file of this name is another process's.
            if not keep and is_same_file(fd, partial):
                partial.unlink()


def resumable_path(path: Path) -> contextlib.AbstractContextManager[Path]:
    """Do as ``scratch``, but keep the file when Ctrl-C, a signal or a killed worker ends the block.

    What it holds at the start of the block is what an earlier, stopped one left there, if any.
    """
    return temporary_path(path, keep_after=(KeyboardInterrupt, WorkerError))


def remove_partial(path: Path) -> None:
    """Remove what ``resumable`` has kept for ``path``, unless it is in use or not ours."""
    if _partial(path).exists():
        with contextlib.suppress(WsiIdcError, OSError), temporary_path(path):
            pass


def is_being_written(path: Path) -> bool:
    """Return whether another process is in a block of ``scratch`` or ``resumable`` for ``path``."""
    return is_held(_partial(path))


def _partial(path: Path) -> Path:
    # Where nothing can be locked, only a name of its own keeps another process out.
    own = "" if can_lock(path.parent) else f".{platform.node()}-{os.getpid()}"
    return path.with_name(f".{path.name}{own}.partial")


@contextlib.contextmanager
def _full_disk_in_a_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        reason = os.strerror(error.errno).lower()
        raise DiskFullError(f"{path}: {reason}; free some space and run again") from None


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the file system can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def ensure_writable(folder: Path, *, writes: Collection[str], marks: Collection[str]) -> None:
    """Raise where a command's files cannot go into ``folder``, ahead of the work.

    Args:
        folder: There or not.
        writes: Names of the files.
        marks: Those of them by which an earlier output of the same kind is known, which may be
            replaced.

    Raises:
        WsiIdcError: It cannot be written to, or holds other files of these names.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise WsiIdcError(f"{there} is a file; give a folder as --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WsiIdcError(f"{there} cannot be written to; give another --out")
    taken = [name for name in writes if (folder / name).exists()]
    if taken and not any((folder / name).exists() for name in marks):
        raise WsiIdcError(
            f"{folder / taken[0]} is of something else and would be lost; give another --out"
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one atomic step."""
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 in one atomic step.

    A byte of a file name that was no UTF-8 becomes an escape as JSON has it.
    """
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON in one atomic step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: It is none, holds a NaN or infinity, which JSON knows not, or is nested so deep
            that nothing could write it again.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_filename(name: str) -> str:
    """Return ``name`` if it can be a file's name that stays in its folder.

    Raises:
        DataError: It is empty, hidden, too long, or holds a separator or control character.
    """
    bad = (
        not name
        or name.startswith(".")
        or any(char in "/\\" for char in name)
        or not name.isprintable()
        or len(name.encode()) > _MAX_NAME_BYTES
    )
    if bad:
        raise DataError(
            f"{name!r} cannot be a patient id: it would not make a plain file name; "
            "rename the patient"
        )
    return name
