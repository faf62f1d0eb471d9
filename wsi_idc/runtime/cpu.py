"""How many cores this process may use."""

import os


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
