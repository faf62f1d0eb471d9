import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from wsi_idc.doctor import disk
from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult

GB = 10**9
MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /scratch rw - tmpfs tmpfs rw
31 22 0:41 / /data\040of\040all rw - nfs4 server:/x rw
32 30 0:42 / /scratch/deep rw shared:5 master:1 - lustre x rw
"""


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace every disk by one of 100 GB, half of them free."""
    space = SimpleNamespace(total=100 * GB, free=50 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: space)
    return space


def test_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    monkeypatch.setattr(disk, "_existing", lambda folder: folder)
    kinds = {"/home/x": "ext4", "/scratch": "tmpfs", "/scratch/a": "tmpfs", "/scratchy": "ext4"}
    kinds |= {"/scratch/deep/a/b": "lustre", "/data of all/x": "nfs4"}
    assert {path: disk.file_system(Path(path), mounts) for path in kinds} == kinds


def test_room(tmp_path: Path, usage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "file_system", lambda path: "ext4")
    out = tmp_path / "not" / "yet"
    value = f"{out} (ext4), 50.0 of 100.0 GB free"
    assert list(disk.room(out)) == [CheckResult("output disk", value)]
    usage.free = GB
    (row,) = disk.room(out)
    assert (row.value, row.state) == (f"{out} (ext4), 1.0 of 100.0 GB free", PROBLEM)
    assert not out.exists()


def test_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    times = iter([0.0, 0.5, 0.0, 64.0])
    synced = []
    monkeypatch.setattr(disk.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    assert list(disk.writing(tmp_path / "new")) == [CheckResult("writing", "134 MB/s with fsync")]
    assert synced == [64 * 2**20]
    (row,) = disk.writing(tmp_path)
    assert (row.value, row.state) == ("1 MB/s with fsync", NOTE)
    assert list(tmp_path.iterdir()) == []
    (row,) = disk.writing(Path("/proc"))
    assert row.state == PROBLEM
    assert row.value.startswith("not possible (")


def test_locks_and_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert list(disk.locks(tmp_path)) == [CheckResult("file locks", "work")]
    refuse = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr("fcntl.flock", refuse)
    (row,) = disk.locks(tmp_path.parent)  # not the same folder: its answer is cached
    assert (row.value, row.state) == ("do not work in this folder", PROBLEM)
    assert list(disk.hdf5(tmp_path)) == [CheckResult("HDF5 files", "can be written and read")]
    assert list(tmp_path.iterdir()) == []


def test_scratch(tmp_path: Path, usage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    (row,) = disk.scratch()
    assert row.value == "WSI_IDC_SCRATCH is not set: packs are read without a copy"
    monkeypatch.setattr(disk, "file_system", lambda path: "tmpfs")
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "new"))
    assert list(disk.scratch()) == [CheckResult("scratch", f"{tmp_path}/new (tmpfs), 50.0 GB free")]
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("WSI_IDC_SCRATCH", "/proc/x")
    (row,) = disk.scratch()
    assert row.value.startswith("/proc/x (tmpfs), 50.0 GB free, cannot be written (")
    assert row.state == PROBLEM
