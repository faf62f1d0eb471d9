"""Cores, threads, GPUs and memory of this process; this module does not import torch."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The first three variables list the indices of the GPUs; the last variable counts the GPUs.
_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE")
# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_MB = 2**20
_NO_LIMIT = 2**60  # bytes; a larger number in a control group means "no limit"


def available_cores() -> int:
    """Return the number of cores that this process may use.

    SLURM states this number in an environment variable. Without SLURM, the number is read from the
    CPU affinity. On a cluster, many jobs share a machine, but ``os.cpu_count`` counts all cores.
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


def available_memory() -> int | None:
    """Return the memory in bytes that this process can use at most; None if it is not known."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        (free_kb,) = re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
        return min(int(free_kb) * 1024, memory_limit() or sys.maxsize)
    except (OSError, ValueError):  # systems other than Linux
        return None


def memory_limit(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the lowest memory limit of this process's cgroups in bytes; None means no limit."""
    limits = []
    for line in own.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base, file = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        # A parent group may have a smaller limit. In a container, the path of the group may be
        # missing below ``base``.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(base) and (group / file).is_file():
                limits.append((group / file).read_text().strip())
    return min((int(n) for n in limits if n.isdecimal() and int(n) < _NO_LIMIT), default=None)


def slurm_gpus() -> str | None:
    """Return the environment variable in which SLURM states the GPUs of the job, as ``NAME=value``.

    Return None if the job has no GPU.
    """
    for name in _GPUS if "SLURM_JOB_ID" in os.environ else ():
        none = "0" if name == "SLURM_GPUS_ON_NODE" else "-1"
        if (value := os.environ.get(name, "")) not in ("", none, "NoDevFiles"):
            return f"{name}={value}"
    return None


def limit_spinning() -> None:
    """Shorten the busy waiting of torch's threads; call this function before torch is imported.

    By default, a waiting thread of GNU OpenMP occupies its core for milliseconds. In a measurement
    with two programs on the same two cores, this waiting made maps three times as slow. Therefore
    this function sets the environment variable GOMP_SPINCOUNT to 1000. If there are more threads
    than cores, GNU OpenMP uses this value by default. If the user has set GOMP_SPINCOUNT or
    OMP_WAIT_POLICY, this function changes nothing.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Keep freed memory in the process for reuse; on systems without glibc, do nothing.

    By default, glibc returns a large block to the system when the block is freed. A network on a
    CPU allocates and frees hundreds of MB per batch. The system must fill each new page with zeros,
    which takes up to a third of the time of a forward pass. The peak memory use does not change.
    """
    _call_libc("mallopt", _MMAP_MAX, 0)
    _call_libc("mallopt", _TRIM_THRESHOLD, _NEVER)


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Context manager: inside the block, return freed memory to the system.

    glibc returns memory above certain thresholds. This function sets the thresholds to the values
    that glibc itself sets after a program frees large blocks.
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
