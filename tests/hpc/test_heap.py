"""Tests of keeping freed memory: page faults are counted, not seconds."""

import resource
import sys

import numpy as np
import pytest

from wsi_idc.hpc.heap import freed_memory_returned, keep_freed_memory

_BYTES = 40 * 2**20
_PAGE = resource.getpagesize()

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="glibc's memory, which is Linux's"
)


def _faults_of_block() -> int:
    """Return how many pages the system gave for one more block of 40 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(_BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_block_is_used_again():
    keep_freed_memory()
    _faults_of_block()
    assert _faults_of_block() < _BYTES / _PAGE / 50


def test_freed_block_is_returned_in_block_and_kept_after():
    with freed_memory_returned():
        _faults_of_block()
        returned = _faults_of_block()
    _faults_of_block()
    # At least a fault for each large page (2 MB).
    assert returned >= 20 > _faults_of_block()
