"""Whether memory that was freed stays with the process."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
def freed_memory_returned() -> Iterator[None]:
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
