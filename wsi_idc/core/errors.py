"""Errors of the user's situation, as opposed to mistakes in this package.

A message is one line: what is wrong, why, what to do. The command line prints it after ``Error:``
and exits with ``exit_code``. A mistake in this package is a ``ValueError`` or an assertion.
"""

import struct
import zlib

# Errors that Pillow and tifffile raise on a damaged image.
DAMAGED_IMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, zlib.error, struct.error, OverflowError),
    *(KeyError, IndexError, TypeError, AttributeError, MemoryError),
)


class WsiIdcError(Exception):
    """An error in the user's situation, in one line: what is wrong, why, what to do."""

    exit_code = 1


class DataError(WsiIdcError):
    """A patch tree, pack, split or CSV cannot be used."""


class SlideError(WsiIdcError):
    """A slide cannot be read or lacks required metadata."""


class CheckpointError(WsiIdcError):
    """A checkpoint cannot be read or does not fit."""


class MapError(WsiIdcError):
    """A map file cannot be read or must not be replaced."""


class RunError(WsiIdcError):
    """A run directory cannot be used."""


class JobError(WsiIdcError):
    """A job file cannot be used, or its folder holds the output of another job."""


class DeviceError(WsiIdcError):
    """A device or precision is not available on this machine."""


class PeerLostError(WsiIdcError):
    """Another process of a distributed training has ended."""


class BusyError(WsiIdcError):
    """Another process is writing the same output."""


class DiskFullError(WsiIdcError):
    """A file does not fit on the disk; nothing is half-written, and the command can be resumed."""


class WorkerError(WsiIdcError):
    """A worker process was killed; the command can be resumed."""


class StoppedError(WsiIdcError):
    """A signal stopped the command; everything is saved, and the command can be resumed."""

    exit_code = 75


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, or the error's type if it is empty."""
    line = (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
    return line.strip("'\"") if isinstance(error, KeyError) else line  # str(KeyError) has quotes
