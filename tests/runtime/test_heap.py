"""Tests of keeping freed memory: page faults are counted, not seconds."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="glibc's memory, which is Linux's"
)

# In a process of its own, for what other tests freed would be used first.
_COUNT = """
import resource
import numpy as np
from wsi_idc.runtime.heap import freed_memory_returned, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
first, kept = faults(), faults()
with freed_memory_returned():
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
