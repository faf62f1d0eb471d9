"""Errors whose cause is the user's input or machine, not a mistake in this package.

Each message is one line that names the problem, its cause and a remedy. The command line prints
the message after ``Error:`` and exits with ``exit_code``. A mistake in this package raises a
``ValueError`` or an ``AssertionError``.
"""

import struct
import zlib

# Errors that Pillow and tifffile raise on a damaged image.
DAMAGED_IMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, zlib.error, struct.error, OverflowError),
    *(KeyError, IndexError, TypeError, AttributeError, MemoryError),
)


class WsiIdcError(Exception):
    """Base class of the errors whose cause is the user's input or machine."""

    exit_code = 1


class DataError(WsiIdcError):
    """A patch tree, pack, split or CSV cannot be used."""


class SlideError(WsiIdcError):
    """A slide cannot be read or lacks required metadata."""


class CheckpointError(WsiIdcError):
    """A checkpoint cannot be read, or does not fit the data or another checkpoint."""


class MapError(WsiIdcError):
    """A map file cannot be read, or must not be replaced."""


class RunError(WsiIdcError):
    """A run directory cannot be used."""


class JobError(WsiIdcError):
    """A job file cannot be used, or the folder of the job holds the output of another job."""


class DeviceError(WsiIdcError):
    """A device or precision is not available on this machine."""


class PeerLostError(WsiIdcError):
    """Another process of a distributed training has ended."""


class MissingPackageError(WsiIdcError):
    """A function needs an optional package that is not installed."""


class BusyError(WsiIdcError):
    """Another process is writing the same output."""


class DiskFullError(WsiIdcError):
    """A file does not fit on the disk. The partial file is removed; the command can be resumed."""


class WorkerError(WsiIdcError):
    """A worker process was killed, or input files disappeared; the command can be resumed."""


class StoppedError(WsiIdcError):
    """A signal stopped the command; the work is saved, and the command can be resumed."""

    exit_code = 75


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    if isinstance(error, OSError) and error.strerror:
        # Without "[Errno 2]".
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    line = (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
    return line.strip("'\"") if isinstance(error, KeyError) else line  # str(KeyError) has quotes
