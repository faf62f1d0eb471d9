import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.full_disk import small_disk
from wsi_idc.core.errors import DiskFullError, WsiIdcError
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


def test_a_disk_that_is_full_when_rows_are_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    monkeypatch.setattr(disk_array, "_MAX_BYTES_IN_MEMORY", 8)
    with small_disk(tmp_path / "disk", 16 * 1024) as disk:
        array = DiskArray(disk.path)
        array.append(np.zeros(512))  # 4096 bytes, a page of the disk
        array.append(np.zeros(100))  # in the buffer of the file
        with suppress(OSError), (disk.path / "other").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        with pytest.raises(DiskFullError, match="no space left on device; free some space"):
            array[:]
        del array
    assert not [str(warning.message) for warning in recwarn]


def test_a_temporary_file_that_was_cut_short_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(disk_array, "_MAX_BYTES_IN_MEMORY", 8)
    array = DiskArray(tmp_path)
    array.append(np.ones((3, 2)))
    array._file.flush()
    os.ftruncate(array._file.fileno(), 40)
    np.testing.assert_array_equal(array[:2], np.ones((2, 2)))
    with pytest.raises(WsiIdcError, match="a temporary file is too short; run again"):
        array[:]
