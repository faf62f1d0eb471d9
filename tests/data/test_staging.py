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
    # The copy is read, also in a worker process.
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
    outputs = [child.communicate(timeout=120) for child in children]
    (copy,) = scratch.iterdir()
    assert [out for out, _ in outputs] == [f"{copy}\n"] * 3
    assert sum(err.count("copying ") for _, err in outputs) == 1


def test_a_waiting_task_reads_the_copy_of_the_other(pack, scratch, monkeypatch, caplog):
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


def little_room(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    usage = shutil.disk_usage("/")._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def full_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.utime", full)


def foreign_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "foreign").mkdir()
    (folder / "scratch").mkdir()
    (folder / "scratch" / f"wsi-idc-{os.getuid()}").symlink_to(folder / "foreign")


@pytest.mark.parametrize(
    ("prepare_failure", "reason"),
    [
        (little_room, "not enough room, 100 MB free of the 256 MB needed; free some, or unset WSI"),
        (full_disk, "no space left on device; free some space"),
        (foreign_folder, "is not a folder of this user; remove it"),
        (lambda patch, _: patch.setenv("WSI_IDC_SCRATCH", "/proc/nowhere"), "No such file"),
        (lambda patch, _: patch.setenv("WSI_IDC_SCRATCH", "/dev/null/below"), "Not a directory"),
        # A disk that stores no times: no endless copying.
        (
            lambda patch, _: patch.setattr("os.utime", lambda *_, **__: None),
            "differs from the pack",
        ),
    ],
)
def test_without_a_copy_the_pack_itself_is_read(
    pack, scratch, tmp_path, monkeypatch, caplog, prepare_failure, reason
):
    os.utime(pack.path, (1, 1))
    prepare_failure(monkeypatch, tmp_path)
    assert open_data(pack.path).file == pack.path
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.startswith(f"{pack.path} is not copied to WSI_IDC_SCRATCH: ")
    assert reason in message
    if reason != "differs from the pack":
        assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
        assert not list(tmp_path.glob("foreign/*"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_scratch_without_locks(pack, scratch, monkeypatch, number):
    def refuse(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    copy = open_data(pack.path).file
    assert list(scratch.iterdir()) == [copy]
