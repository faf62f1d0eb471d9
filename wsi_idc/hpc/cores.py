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
