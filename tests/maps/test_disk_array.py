import errno
from pathlib import Path

import numpy as np
import pytest

from wsi_idc.core.errors import DiskFullError
from wsi_idc.maps import disk_array
from wsi_idc.maps.disk_array import DiskArray


@pytest.mark.parametrize("limit", [2**24, 8])  # in memory, in a file
def test_rows_of_an_array_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int):
    monkeypatch.setattr(disk_array, "_MAX_BYTES_IN_MEMORY", limit)
    array, expected = DiskArray(tmp_path), np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    assert len(array) == 0
    for block in np.split(expected, [1, 6]):
        array.append(block)
    assert (len(array), array.shape) == (10, (10, 2, 3))
    for rows in (slice(None), slice(1), slice(8, 99), np.array([4, 5, 2, 9, 0]), np.array([], int)):
        found = array[rows]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[rows])
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    array = DiskArray(tmp_path)

    def fail(data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array._file, "write", fail)
    with pytest.raises(DiskFullError, match="no space left on device; free some space"):
        array.append(np.zeros(3))
