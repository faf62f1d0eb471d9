"""What can go wrong in the user's situation.

A message is one line that says what, why and what to do; the command line prints it after
``Error:`` and leaves with ``exit_code``. A mistake of ours is a ``ValueError`` or an assertion::

    WsiIdcError
    ├── DataError            a patch tree, pack, split or CSV that cannot be used
    ├── SlideError           a slide that cannot be read, or does not say what it must
    ├── CheckpointError      a checkpoint that cannot be read or does not fit
    ├── MapError             a map file that cannot be read or must not be replaced
    ├── RunError             a run directory that cannot be used
    ├── JobError             a job file that cannot be used, or a search of another one
    ├── DeviceError          a device or precision that this machine does not have
    ├── PeerLostError        another process of a training on several devices has ended
    ├── BusyError            another process is at work on the same output
    ├── DiskFullError        there is no room for a file
    ├── WorkerError          a process of ours was killed; running again goes on
    └── StoppedError         a signal asked to stop and everything is saved (exit 75)
"""


class WsiIdcError(Exception):
    """The user's trouble, in one line: what, why, what to do."""

    exit_code = 1


class DataError(WsiIdcError):
    """A patch tree, pack, split or CSV cannot be used."""


class SlideError(WsiIdcError):
    """A slide cannot be read, or does not say what it must."""


class CheckpointError(WsiIdcError):
    """A checkpoint cannot be read or does not fit."""


class MapError(WsiIdcError):
    """A map file cannot be read or must not be replaced."""


class RunError(WsiIdcError):
    """A run directory cannot be used."""


class JobError(WsiIdcError):
    """A job file cannot be used, or its folder holds the work of another one."""


class DeviceError(WsiIdcError):
    """A device or precision is not available on this machine."""


class PeerLostError(WsiIdcError):
    """Another process of a training on several devices has ended before its time."""


class BusyError(WsiIdcError):
    """Another process is at work on the same output."""


class DiskFullError(WsiIdcError):
    """There is no room for a file; nothing is half-written, and running again goes on."""


class WorkerError(WsiIdcError):
    """A process that did part of the work was killed; running again goes on."""


class StoppedError(WsiIdcError):
    """A signal asked to stop; everything is saved and running again goes on."""

    exit_code = 75


def first_line(error: Exception) -> str:
    """Return the first line of what a library's error says, or its name where it says nothing."""
    line = (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
    return line.strip("'\"") if isinstance(error, KeyError) else line  # of which str is the repr
