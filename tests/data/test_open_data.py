import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest

from tests.packs import add_patch, block, file_name, make_pack, make_unreadable
from wsi_idc.core.errors import BusyError, DataError
from wsi_idc.core.files import atomic_write
from wsi_idc.data.open_data import cache_folder, find_patch_tree, open_data
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare

OPEN = """
import sys
from pathlib import Path
from wsi_idc.core.progress import set_up_logging
from wsi_idc.data.open_data import open_data
set_up_logging(0)
pack = open_data(Path(sys.argv[1]))
print(pack.path, pack.file)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this user's folder in a scratch folder that is set, and not there yet."""
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch" / f"wsi-idc-{os.getuid()}"


def cached() -> list[Path]:
    return sorted(cache_folder().glob("packs/*/*.h5"))


def test_a_pack_and_a_folder_with_one_pack_in_it(pack):
    assert open_data(pack.path).path == pack.path
    with h5py.File(pack.path.with_name("other.h5"), "w") as file:
        file.attrs["format"] = "wsi-idc-map"
    h5py.File(pack.path.with_name("foreign.h5"), "w").close()
    pack.path.with_name("._idc.h5").write_text("of macOS")
    pack.path.with_name("folder.h5").mkdir()
    assert open_data(pack.path.parent).path == pack.path
    assert cached() == []
    shutil.copy(pack.path, pack.path.with_name("b.h5"))
    with pytest.raises(DataError, match=r"holds 2 packs \(b.h5, idc.h5\); choose one with --data"):
        open_data(pack.path.parent)


@pytest.mark.parametrize("num_bytes", [0, 100, 3000])
@pytest.mark.parametrize("others", [0, 1])
def test_a_damaged_pack_in_a_folder_is_named(pack, num_bytes, others):
    folder = pack.path.parent
    if others:
        shutil.copy(pack.path, folder / "old.h5")
    pack.path.write_bytes(pack.path.read_bytes()[:num_bytes])
    with pytest.raises(DataError, match=r"/idc.h5: HDF5 cannot read this file \(.+\); make it"):
        open_data(folder)


def test_default_is_the_variable_then_the_working_folder(pack, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data: there is no data here; make a pack with wsi-idc"):
        open_data()
    shutil.copytree(tree, "data")
    assert open_data().path == cached()[0]
    prepare(tree, Path("data/idc.h5"))
    assert open_data().path == Path("data/idc.h5")
    monkeypatch.setenv("WSI_IDC_DATA", str(pack.path))
    assert open_data().path == pack.path
    monkeypatch.setenv("WSI_IDC_DATA", "nowhere")
    with pytest.raises(DataError, match="there is no nowhere here"):
        open_data()


def test_paths_without_data(tmp_path):
    archive, pipe = tmp_path / "archive", tmp_path / "pipe.h5"
    os.mkfifo(pipe)  # to read it would block
    archive.write_bytes(b"PK\x03\x04")
    for path, message in [
        (tmp_path, "holds neither a pack nor patches; make a pack"),
        (tmp_path / "absent", "no such file; make one with wsi-idc prepare"),
        (archive, r"not a complete zip \(.+\); get it again"),
        (pipe, "not an HDF5 file; give a pack, a patch tree, or a zip"),
    ]:
        with pytest.raises(DataError, match=message):
            open_data(path)
    archive.write_text("text")
    with pytest.raises(DataError, match="not an HDF5 file; give a pack, a patch tree, or a zip"):
        open_data(archive)


def test_a_tree_and_its_copy_are_packed_once_and_again_after_a_change(tree, tmp_path, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    pack = open_data(tree)
    assert len(pack) == 7
    assert [pack.path] == cached()
    state = pack.path.stat()
    for root in (tree, shutil.copytree(tree, tmp_path / "copy")):
        again = open_data(root)
        assert (again.path, again.path.stat()) == (pack.path, state)
    assert sum(line.startswith(f"packing {tree} into") for line in caplog.messages) == 1
    added = add_patch(tree, "9", 7, 7, 1)
    assert len(open_data(tree)) == 8
    added.unlink()
    assert open_data(tree).path == pack.path


def test_each_command_reports_files_missing_from_the_cached_pack(tree, monkeypatch, caplog):
    (tree / "9/0/notes.png").write_bytes((tree / "9/0" / file_name("9", 0, 3, 0)).read_bytes())
    make_unreadable(monkeypatch, file_name("9", 0, 3, 0))
    for _ in range(2):
        caplog.clear()
        pack = open_data(tree)
        assert len(pack) == 6
        line = f"2 files left out; see {pack.path.parent / 'rejected.csv'}"
        assert caplog.messages[-1] == line
    pack.path.with_name("rejected.csv").unlink()
    caplog.clear()
    assert (len(open_data(tree)), caplog.messages) == (6, [])


def test_a_file_that_has_become_readable_is_packed(tree, monkeypatch, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    (tree / "9/0/notes.png").write_bytes((tree / "9/0" / file_name("9", 0, 3, 0)).read_bytes())
    with monkeypatch.context() as patch:
        make_unreadable(patch, file_name("9", 0, 3, 0))
        assert len(open_data(tree)) == 6
        assert len(open_data(tree)) == 6
        # A file that is readable at times is packed once a command.
        patch.setattr("wsi_idc.data.open_data.is_decodable", lambda *_: True)
        assert len(open_data(tree)) == 6
    assert len(open_data(tree)) == 7
    assert len(open_data(tree)) == 7
    assert len(cached()) == 1
    assert sum(line.startswith(f"packing {tree} into") for line in caplog.messages) == 3


def test_processes_that_start_together_share_one_pack_and_its_copy(tree, scratch):
    command = [sys.executable, "-c", OPEN, tree]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    (path,), (copy,) = cached(), scratch.iterdir()
    assert [out for out, _ in outputs] == [f"{path} {copy}\n"] * 3
    assert sum(errors.count("copying ") for _, errors in outputs) == 1
    assert len(open_data(tree)) == 7


def test_a_damaged_pack_in_the_cache_is_made_again(tree):
    path = open_data(tree).path
    path.write_bytes(path.read_bytes()[:1000])
    leftover = path.with_name(f".{path.name}.pixels.partial")  # of a killed run
    leftover.write_bytes(bytes(1000))
    pack = open_data(tree)
    assert (pack.path, len(pack)) == (path, 7)
    assert not leftover.exists()


def test_the_repair_of_a_damaged_pack_by_another_process_is_waited_for(tree, monkeypatch):
    path = open_data(tree).path
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])

    def busy(tree: Path, pack: Path) -> None:
        assert not pack.exists()
        pack.write_bytes(whole)
        raise BusyError(f"{pack}: another process is writing it")

    def gone(pack: Path) -> Pack:
        if pack.stat().st_size == 1000:
            pack.unlink()
            raise DataError(f"{pack}: damaged")
        return Pack(pack)

    monkeypatch.setattr("wsi_idc.data.open_data.prepare", busy)
    monkeypatch.setattr("wsi_idc.data.open_data.Pack", gone)
    assert len(open_data(tree)) == 7


def test_a_pack_in_the_making_is_waited_for_without_a_look_at_the_tree(tree, monkeypatch, caplog):
    path = open_data(tree).path
    whole = path.read_bytes()
    path.unlink()
    tried, looks = [], []

    def busy(tree: Path, pack: Path) -> None:
        tried.append(pack)
        raise BusyError(f"{pack}: another process is writing it")

    def is_in_making(cache: Path) -> bool:
        pack = cache.with_name(cache.name.removesuffix(".pixels"))
        looks.append(pack)
        if len(looks) == 3:
            pack.write_bytes(whole)
        return len(looks) < 3

    monkeypatch.setattr("wsi_idc.data.open_data.prepare", busy)
    monkeypatch.setattr("wsi_idc.data.open_data.is_being_written", is_in_making)
    monkeypatch.setattr("wsi_idc.core.locks._SECONDS_BETWEEN_TRIES", 0)
    with caplog.at_level(logging.INFO):
        assert len(open_data(tree)) == 7
    assert (tried, looks) == ([], [path] * 3)
    assert sum("waiting for another process" in line for line in caplog.messages) == 1


def test_a_zip_in_the_default_folder_is_found(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = Path(shutil.make_archive("data/archive", "zip", tree)).relative_to(tmp_path)
    Path("data/notes.zip").write_text("no zip")
    Path("data/figure.png").write_bytes(b"no patch")
    assert find_patch_tree(Path("data")) == archive
    assert len(open_data()) == 7
    shutil.copy(archive, "data/b.zip")
    with pytest.raises(DataError, match=r"data holds 2 zips \(archive.zip, b.zip\); choose one"):
        open_data()
    tree.rename("data/IDC_regular_ps50_idx5")
    assert find_patch_tree(Path("data")) == Path("data")


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("WSI_IDC_CACHE")
    for name, value, folder in (  # each variable precedes those before
        ("HOME", "/home/me", "/home/me/.cache/wsi-idc"),
        ("XDG_CACHE_HOME", "/xdg", "/xdg/wsi-idc"),
        ("WSI_IDC_CACHE", "/elsewhere", "/elsewhere"),
    ):
        monkeypatch.setenv(name, value)
        assert cache_folder() == Path(folder)


def test_a_cache_that_cannot_be_written_names_the_variable(tree, monkeypatch):
    monkeypatch.delenv("WSI_IDC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    message = "^/dev/null/cache/wsi-idc cannot keep the pack of .*; set WSI_IDC_CACHE to a folder"
    with pytest.raises(DataError, match=message):
        open_data(tree)


def test_a_pack_is_copied_once_and_read_from_there(pack, scratch, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    opened = open_data(pack.path)
    (copy,) = scratch.iterdir()
    assert (opened.path, opened.file) == (pack.path, copy)
    assert copy.read_bytes() == pack.path.read_bytes()
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert str(opened) == f"{pack.path}, read from {copy}"
    assert caplog.messages == [
        f"copying {pack.path} (0 MB) to {copy}",
        f"{pack.path} is read from the copy {copy}",
    ]
    state = copy.stat()
    assert open_data(pack.path).file == copy
    assert copy.stat() == state
    # The copy is read, also in a worker process.
    with h5py.File(copy) as content:
        patches = content["patches"]
        position = patches.id.get_offset() + patches.nbytes - 1
    with copy.open("r+b") as file:
        file.seek(position)
        last = file.read(1)[0]
        file.seek(position)
        file.write(bytes([last ^ 1]))
    os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    for reader in (opened, pickle.loads(pickle.dumps(opened))):
        assert reader.patches[-1, -1, -1, -1] == pack.patches[-1, -1, -1, -1] ^ 1
        assert (reader.path, reader.file) == (pack.path, copy)
    assert opened.paths() == pack.paths()


def test_without_the_variable_no_scratch_is_touched(pack, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("WSI_IDC_SCRATCH", value)
        opened = open_data(pack.path)
        assert opened.file == pack.path
        assert str(opened) == str(pack.path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pack_in_scratch_stays_there_and_that_of_a_tree_is_copied(tree, pack, scratch):
    scratch.parent.mkdir()
    path = Path(shutil.copy(pack.path, scratch.parent))
    assert open_data(path).file == path
    assert not scratch.exists()
    staged = open_data(tree)
    assert staged.path.is_relative_to(cache_folder())
    assert staged.file.is_relative_to(scratch)


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
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("os.utime", Mock(side_effect=full))


def foreign_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "foreign").mkdir()
    (folder / "scratch").mkdir()
    (folder / "scratch" / f"wsi-idc-{os.getuid()}").symlink_to(folder / "foreign")


@pytest.mark.parametrize(
    ("prepare_failure", "reason"),
    [
        (little_room, "not enough space: 256 MB are needed, 100 MB are free; free some space, or"),
        (full_disk, "no space left on device; free some space"),
        (foreign_folder, "is not a folder of this user; remove it"),
        (lambda patch, _: patch.setenv("WSI_IDC_SCRATCH", "/proc/nowhere"), "No such file"),
        (lambda patch, _: patch.setenv("WSI_IDC_SCRATCH", "/dev/null/below"), "Not a directory"),
        # A disk that stores no times: no endless copying.
        (lambda patch, _: patch.setattr("os.utime", Mock()), "differs from the pack"),
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
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(number, os.strerror(number))))
    copy = open_data(pack.path).file
    assert list(scratch.iterdir()) == [copy]
