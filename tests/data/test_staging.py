import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.packs import block, make_pack
from wsi_idc.core.files import atomic_write
from wsi_idc.data.open_data import cache_folder, open_data

OPEN = """
import sys, pathlib
from wsi_idc.data.open_data import open_data
from wsi_idc.core.progress import set_up_logging
set_up_logging(0)
print(open_data(pathlib.Path(sys.argv[1])).file)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this user's folder in a scratch folder that is set, and not there yet."""
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch" / f"wsi-idc-{os.getuid()}"


def warned(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    return line


def test_a_pack_is_copied_once_and_read_from_there(pack, scratch, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    found = open_data(pack.path)
    (copy,) = scratch.iterdir()
    assert (found.path, found.file) == (pack.path, copy)
    assert copy.read_bytes() == pack.path.read_bytes()
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert str(found) == f"{pack.path}, read from {copy}"
    assert caplog.messages == [
        f"copying {pack.path} (0 MB) to {copy}",
        f"{pack.path} is read from the copy {copy}",
    ]
    state = copy.stat()
    assert open_data(pack.path).file == copy
    assert copy.stat() == state
    # What is read is the copy, also in a worker process.
    with copy.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    for reader in (found, pickle.loads(pickle.dumps(found))):
        assert reader.patches[-1, -1, -1, -1] == pack.patches[-1, -1, -1, -1] ^ 1
        assert (reader.path, reader.file) == (pack.path, copy)
    assert found.paths() == pack.paths()


def test_without_the_variable_no_scratch_is_touched(pack, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("WSI_IDC_SCRATCH", value)
        found = open_data(pack.path)
        assert found.file == pack.path
        assert str(found) == str(pack.path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tree_is_read_from_a_copy_of_its_pack(tree, scratch):
    found = open_data(tree)
    assert found.path.is_relative_to(cache_folder())
    assert found.file.is_relative_to(scratch)


def test_a_pack_that_lies_in_scratch_stays_there(pack, scratch):
    scratch.parent.mkdir()
    there = Path(shutil.copy(pack.path, scratch.parent))
    assert open_data(there).file == there
    assert not scratch.exists()


def test_tasks_that_start_together_share_one_copy(pack, scratch):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(pack.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [child.communicate(timeout=120) for child in children]
    (copy,) = scratch.iterdir()
    assert [out for out, _ in said] == [f"{copy}\n"] * 3
    assert sum(err.count("copying ") for _, err in said) == 1


def test_the_one_that_waits_reads_what_the_other_made(pack, scratch, monkeypatch, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    copy = open_data(pack.path).file
    copy.rename(aside := copy.with_name("aside"))
    with atomic_write(copy) as partial:
        # It looks again when this block has ended.
        def end(seconds: float) -> None:
            shutil.copy2(aside, partial)
            partial.rename(copy)

        monkeypatch.setattr("time.sleep", end)
        assert open_data(pack.path).file == copy
        shutil.copy2(aside, partial)
    assert f"waiting for another process that copies {pack.path} to {copy}" in caplog.messages


def test_a_copy_made_while_this_process_came_to_it_is_not_made_again(pack, scratch, monkeypatch):
    copy = open_data(pack.path).file
    state = copy.stat()
    from wsi_idc.data import staging as stage

    with pytest.raises(stage.BusyError, match="made by another process meanwhile"):
        stage._copy(pack, copy)
    assert copy.stat() == state
    assert list(scratch.iterdir()) == [copy]


@pytest.mark.parametrize("harm", ["cut", "stale", "garbage", "partial"])
def test_a_damaged_or_stale_copy_is_replaced(pack, scratch, harm):
    copy = open_data(pack.path).file
    good, state = copy.read_bytes(), copy.stat()
    if harm == "cut":
        copy.write_bytes(good[:1000])
    elif harm == "stale":
        os.utime(copy, (1, 1))
    elif harm == "garbage":
        copy.write_bytes(bytes(len(good)))
        os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        copy.rename(copy.with_name(f".{copy.name}.partial"))
    assert open_data(pack.path).file == copy
    assert copy.read_bytes() == good
    assert list(scratch.iterdir()) == [copy]


def test_another_pack_has_another_copy(pack, scratch, tmp_path):
    other = make_pack(tmp_path / "other.h5", block("A", 2, 2))
    first, second = open_data(pack.path), open_data(other.path)
    assert first.file != second.file
    assert np.array_equal(second.patches, other.patches)
    # The same data at another place is the same copy.
    elsewhere = Path(shutil.copy2(pack.path, tmp_path / "elsewhere.h5"))
    assert open_data(elsewhere).file == first.file


def test_too_little_room_is_a_warning(pack, scratch, monkeypatch, caplog):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000_000))
    assert open_data(pack.path).file == pack.path
    assert list(scratch.iterdir()) == []
    assert warned(caplog) == (
        f"{pack.path} is read where it is, not from WSI_IDC_SCRATCH: not enough room, 100 MB free "
        "of the 256 MB needed; free some, or unset it"
    )


def test_a_disk_that_fills_up_meanwhile_is_a_warning(pack, scratch, monkeypatch, caplog):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.utime", full)
    assert open_data(pack.path).file == pack.path
    assert list(scratch.iterdir()) == []
    assert "no space left on device; free some space" in warned(caplog)


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/below"])
def test_a_scratch_that_cannot_be_written_is_a_warning(pack, tmp_path, monkeypatch, caplog, place):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / place))
    assert open_data(pack.path).file == pack.path
    assert "is read where it is, not from WSI_IDC_SCRATCH: " in warned(caplog)


def test_a_folder_of_someone_else_is_not_trusted(pack, scratch, tmp_path, monkeypatch, caplog):
    (tmp_path / "theirs").mkdir()
    scratch.parent.mkdir()
    scratch.symlink_to(tmp_path / "theirs")
    assert open_data(pack.path).file == pack.path
    assert f"{scratch} is not a folder of this user's; remove it" in warned(caplog)
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_disk_that_keeps_no_times_does_not_copy_for_ever(pack, scratch, monkeypatch, caplog):
    monkeypatch.setattr("wsi_idc.data.staging._is_of", lambda pack, copy: False)
    assert open_data(pack.path).file == pack.path
    assert "differs from the pack" in warned(caplog)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_scratch_without_locks(pack, scratch, monkeypatch, number):
    def refuse(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    copy = open_data(pack.path).file
    assert list(scratch.iterdir()) == [copy]
