import os
import subprocess
import sys

import pytest

from wsi_idc.runtime.resources import available_cores, limit_spinning, num_threads, slurm_gpus


@pytest.mark.parametrize("value", ["", "0", "-2", "many", "²"])
def test_cores_are_those_that_slurm_gave_or_those_of_the_affinity(monkeypatch, value):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert available_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", value)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cores() == len(before)


@pytest.mark.parametrize(("limit", "expected"), [("2", 2), ("9", 4), ("0", 4), ("", 4), ("²", 4)])
def test_threads_are_limited_by_omp_num_threads(monkeypatch, limit, expected):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert num_threads() == expected


@pytest.mark.parametrize(
    ("variable", "is_found"),
    [
        *(("SLURM_JOB_ID=1", False), ("SLURM_JOB_GPUS=0", True), ("SLURM_STEP_GPUS=2,3", True)),
        *(("SLURM_GPUS_ON_NODE=2", True), ("SLURM_GPUS_ON_NODE=0", False)),
        *(("CUDA_VISIBLE_DEVICES=0", True), ("CUDA_VISIBLE_DEVICES=NoDevFiles", False)),
        *(("CUDA_VISIBLE_DEVICES=", False), ("CUDA_VISIBLE_DEVICES=-1", False)),
    ],
)
def test_gpus_of_a_slurm_job(monkeypatch, variable, is_found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(*variable.split("="))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm_gpus() is None
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert slurm_gpus() == (variable if is_found else None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(monkeypatch, variables, expected):
    monkeypatch.setattr(os, "environ", dict(variables))
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


# In its own process: memory that other tests freed would be used first.
COUNT_PAGE_FAULTS = """
import resource
import numpy as np
from wsi_idc.runtime.resources import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
first, kept = faults(), faults()
with return_freed_memory():
    faults()
    returned = faults()
faults()
print(first, kept, returned, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has these functions")
def test_freed_memory_is_reused_except_inside_the_block():
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True
    )
    first, kept, returned, kept_after = map(int, done.stdout.split())
    # At least one fault per large page (2 MB).
    assert min(first, returned) >= 50
    assert max(kept, kept_after) < 25
