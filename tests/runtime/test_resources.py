import os
import subprocess
import sys

import pytest

from wsi_idc.runtime.resources import available_cores, limit_spinning


def test_slurm_has_the_first_word(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert available_cores() == 3


@pytest.mark.parametrize("given", ["", "0", "-2", "many", "²"])
def test_else_the_affinity(monkeypatch, given):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cores() == len(before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_spin_briefly_unless_told_otherwise(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="glibc's memory, which is Linux's"
)
# In a process of its own, for what other tests freed would be used first.
_COUNT = """
import resource
import numpy as np
from wsi_idc.runtime.resources import return_freed_memory, keep_freed_memory

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


def test_freed_memory_is_used_again_but_where_it_is_returned():
    said = subprocess.run(
        [sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True
    )
    first, kept, returned, kept_after = map(int, said.stdout.split())
    # At least a fault for each large page (2 MB).
    assert min(first, returned) >= 50
    assert max(kept, kept_after) < 25
