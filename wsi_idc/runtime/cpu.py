"""How many cores this process may use."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def available_cores() -> int:
    """Return the cores given to this process: SLURM's word first, else its CPU affinity.

    ``os.cpu_count`` is the whole machine, which on a cluster is mostly other people's.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_spinning() -> None:
    """Let torch's threads sleep soon where they wait for each other; ahead of torch's import.

    By default GNU OpenMP lets a thread that waits burn its core for milliseconds. Beside one other
    busy program on two cores that made maps three times as slow. This is the value that the library
    itself takes where it knows of more threads than cores; what the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_MB = 2**20


def keep_freed_memory() -> None:
    """Let the process keep what it frees, to use it again; elsewhere than with glibc, do nothing.

    By default glibc gives a large block back to the system when it is freed. A network on a CPU
    makes and frees hundreds of MB a batch, and to be given new pages each time, emptied, takes up
    to a third of the time of a forward pass. The peak is the same.
    """
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER})


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Return it in the block, as a program that knows nothing of this does, and keep it after.

    The thresholds are what glibc's own come to when large blocks have been freed.
    """
    _mallopt({_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * _MB, _TRIM_THRESHOLD: 64 * _MB})
    _call("malloc_trim", 0)
    try:
        yield
    finally:
        keep_freed_memory()


def _mallopt(values: dict[int, int]) -> None:
    for parameter, value in values.items():
        _call("mallopt", parameter, value)


def _call(name: str, *values: int) -> None:
    """Call a function of glibc's; another C library has none of that name."""
    if sys.platform.startswith("linux") and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*values)
