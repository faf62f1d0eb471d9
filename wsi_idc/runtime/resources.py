"""Cores, threads, GPUs and memory of this process; this module does not import torch."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The first three variables list the indices of the GPUs; the last variable counts the GPUs.
_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE")
# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_MB = 2**20


def available_cores() -> int:
    """Return the number of cores of this process: from SLURM, else from the CPU affinity.

    ``os.cpu_count`` counts all cores of the machine, but on a cluster many jobs share a machine.
    """
    if cores := _number("SLURM_CPUS_PER_TASK"):
        return cores
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads() -> int:
    """Return the number of available cores, or OMP_NUM_THREADS if this variable is smaller."""
    cores = available_cores()
    return min(cores, _number("OMP_NUM_THREADS") or cores)


def _number(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 0


def slurm_gpus() -> str | None:
    """Return the SLURM variable of the job's GPUs, as ``NAME=value``; None if there is no GPU."""
    for name in _GPUS if "SLURM_JOB_ID" in os.environ else ():
        none = "0" if name == "SLURM_GPUS_ON_NODE" else "-1"
        if (value := os.environ.get(name, "")) not in ("", none, "NoDevFiles"):
            return f"{name}={value}"
    return None


def limit_spinning() -> None:
    """Shorten the busy waiting of torch's threads; call this function before torch is imported.

    By default, a waiting thread of GNU OpenMP occupies its core for milliseconds. When two
    programs used the same two cores, this waiting made maps three times as slow. This function sets
    GOMP_SPINCOUNT to 1000. GNU OpenMP itself uses 1000 if there are more threads than cores. If the
    user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY, this function changes nothing.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Keep freed memory in the process for reuse; without glibc, do nothing.

    By default glibc returns a large block to the system when the block is freed. A network on a CPU
    allocates and frees hundreds of MB per batch, and the system must fill each new page with zeros.
    New pages take up to a third of the time of a forward pass. The peak memory use does not change.
    """
    _call_libc("mallopt", _MMAP_MAX, 0)
    _call_libc("mallopt", _TRIM_THRESHOLD, _NEVER)


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Context manager: inside the block, freed memory is returned to the system.

    The thresholds are the values that glibc itself sets after a program frees large allocations.
    """
    _call_libc("mallopt", _MMAP_MAX, 65536)
    _call_libc("mallopt", _MMAP_THRESHOLD, 32 * _MB)
    _call_libc("mallopt", _TRIM_THRESHOLD, 64 * _MB)
    _call_libc("malloc_trim", 0)
    try:
        yield
    finally:
        keep_freed_memory()


def _call_libc(name: str, *values: int) -> None:
    # Only glibc has ``mallopt`` and ``malloc_trim``.
    if sys.platform.startswith("linux") and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*values)
