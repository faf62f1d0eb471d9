"""Whether SLURM gave this process GPUs, whatever torch sees of them."""

import os

# Numbers of devices, as lists; and how many there are.
_LISTS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
_COUNT = "SLURM_GPUS_ON_NODE"
_NONE = ("", "-1", "NoDevFiles")


def gpus_given() -> str | None:
    """Return the variable by which SLURM says so, as ``NAME=value``; None where it gave none."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    for name in _LISTS:
        if (value := os.environ.get(name, "")) not in _NONE:
            return f"{name}={value}"
    if (count := os.environ.get(_COUNT, "0")) not in ("", "0"):
        return f"{_COUNT}={count}"
    return None
