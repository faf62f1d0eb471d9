import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from tests.trees import add_patch, file_name
from wsi_idc.core.errors import BusyError, DataError
from wsi_idc.data.open_data import cache_folder, find_patch_tree, open_data
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_store import FolderStore, UnreadablePatchError
from wsi_idc.data.prepare import prepare

OPEN = "import sys, pathlib; from wsi_idc.data.open_data import open_data; " + (
    "print(open_data(pathlib.Path(sys.argv[1])).path)"
)


def cached() -> list[Path]:
    return sorted(cache_folder().glob("packs/*/*.h5"))


def test_a_pack(pack):
    assert open_data(pack.path).path == pack.path
    assert cached() == []


def test_a_folder_with_one_pack_in_it(pack):
    with h5py.File(pack.path.with_name("other.h5"), "w") as file:
        file.attrs["format"] = "wsi-idc-map"
    h5py.File(pack.path.with_name("foreign.h5"), "w").close()
    pack.path.with_name("._idc.h5").write_text("of macOS")
    pack.path.with_name("folder.h5").mkdir()
    assert open_data(pack.path.parent).path == pack.path


@pytest.mark.parametrize("num_bytes", [0, 100, 3000])
@pytest.mark.parametrize("others", [0, 1])
def test_a_damaged_pack_in_a_folder_is_named(pack, num_bytes, others):
    folder = pack.path.parent
    if others:
        shutil.copy(pack.path, folder / "old.h5")
    pack.path.write_bytes(pack.path.read_bytes()[:num_bytes])
    with pytest.raises(
        DataError, match=r"^.+/idc.h5: HDF5 cannot read it \(.+\); make it again, or"
    ):
        open_data(folder)


def test_a_folder_with_several_packs(pack):
    shutil.copy(pack.path, pack.path.with_name("b.h5"))
    with pytest.raises(DataError, match=r"holds 2 packs \(b.h5, idc.h5\); choose one with --data"):
        open_data(pack.path.parent)


def test_default_is_the_variable_then_the_working_folder(pack, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data: there is no data here; make a pack with wsi-idc"):
        open_data()
    tree.rename("data")
    assert open_data().path == cached()[0]
    monkeypatch.setenv("WSI_IDC_DATA", str(pack.path))
    assert open_data().path == pack.path
    monkeypatch.setenv("WSI_IDC_DATA", "nowhere")
    with pytest.raises(DataError, match="there is no nowhere here"):
        open_data()


def test_paths_without_data(tmp_path):
    with pytest.raises(DataError, match="holds neither a pack nor patches; make a pack"):
        open_data(tmp_path)
    with pytest.raises(DataError, match="no such file; make one with wsi-idc prepare"):
        open_data(tmp_path / "absent")
    archive = tmp_path / "archive.zip"
    archive.write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"not a complete zip \(.+\); get it again"):
        open_data(archive)
    archive.write_text("text")
    with pytest.raises(DataError, match="not an HDF5 file; give a pack, a patch tree, or a zip"):
        open_data(archive)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(DataError, match="not an HDF5 file"):
        open_data(tmp_path / "pipe.h5")
    with pytest.raises(DataError, match="holds neither"):
        open_data(tmp_path)


def test_a_tree_is_packed_once(tree, caplog):
    caplog.set_level("INFO", logger="wsi_idc")
    pack = open_data(tree)
    assert len(pack) == 7
    assert [pack.path] == cached()
    state = pack.path.stat()
    again = open_data(tree)
    assert (again.path, again.path.stat()) == (pack.path, state)
    assert sum(line.startswith(f"packing {tree} once") for line in caplog.messages) == 1


def test_a_copy_of_the_tree_shares_the_pack(tree, tmp_path):
    copy = shutil.copytree(tree, tmp_path / "copy")
    assert open_data(copy).path == open_data(tree).path


def test_a_changed_tree_is_packed_again(tree):
    before = open_data(tree)
    add_patch(tree, "9", 7, 7, 1)
    after = open_data(tree)
    assert (len(before), len(after)) == (7, 8)
    (tree / f"9/1/{file_name('9', 7, 7, 1)}").unlink()
    assert open_data(tree).path == before.path


def test_files_left_out_are_reported(tree, caplog):
    (tree / "9/0" / file_name("9", 8, 8, 0)).touch()
    pack = open_data(tree)
    assert caplog.messages[-1] == f"1 files left out; see {pack.path.parent / 'rejected.csv'}"


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Simulate a disk error for files of this name."""
    read = FolderStore.read

    def fail(self: FolderStore, path: str) -> tuple[bytes, str]:
        if path.endswith(name):
            raise UnreadablePatchError("cannot be read: Input/output error")
        return read(self, path)

    monkeypatch.setattr(FolderStore, "read", fail)


def test_each_command_reports_files_missing_from_the_cached_pack(tree, monkeypatch, caplog):
    (tree / "9/0/notes.png").write_bytes((tree / "9/0" / file_name("9", 0, 3, 0)).read_bytes())
    unreadable(monkeypatch, file_name("9", 0, 3, 0))
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
        unreadable(patch, file_name("9", 0, 3, 0))
        assert len(open_data(tree)) == 6
        assert len(open_data(tree)) == 6
    assert len(open_data(tree)) == 7
    assert len(open_data(tree)) == 7
    assert len(cached()) == 1
    assert sum(line.startswith(f"packing {tree} once") for line in caplog.messages) == 2


def test_a_file_that_is_readable_at_times_is_packed_once_a_command(tree, monkeypatch):
    with monkeypatch.context() as patch:
        unreadable(patch, file_name("9", 0, 3, 0))
        open_data(tree)
        patch.setattr("wsi_idc.data.open_data.is_decodable", lambda *_: True)
        assert len(open_data(tree)) == 6


def test_processes_that_start_together_share_one_pack(tree):
    children = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(tree)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert paths == {str(cached()[0])}
    assert len(open_data(tree)) == 7


def test_a_damaged_pack_in_the_cache_is_made_again(tree):
    before = open_data(tree)
    before.path.write_bytes(before.path.read_bytes()[:1000])
    after = open_data(tree)
    assert after.path == before.path
    assert len(after) == len(before.index)


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

    def is_in_making(pack: Path) -> bool:
        looks.append(pack)
        if len(looks) == 3:
            pack.write_bytes(whole)
        return len(looks) < 3

    monkeypatch.setattr("wsi_idc.data.open_data.prepare", busy)
    monkeypatch.setattr("wsi_idc.data.open_data.is_being_prepared", is_in_making)
    monkeypatch.setattr("wsi_idc.core.files._SECONDS_BETWEEN_TRIES", 0)
    with caplog.at_level(logging.INFO):
        assert len(open_data(tree)) == 7
    assert (tried, looks) == ([], [path] * 3)
    assert sum("waiting for another process" in line for line in caplog.messages) == 1


def test_the_cache_file_of_a_killed_run_is_removed(tree):
    pack = open_data(tree).path
    left = pack.with_name(f".{pack.name}.pixels.partial")
    left.write_bytes(bytes(1000))
    assert open_data(tree).path == pack
    assert not left.exists()


def test_a_zip_in_the_default_folder_is_found(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = Path(shutil.make_archive("data/archive", "zip", tree)).relative_to(tmp_path)
    Path("data/notes.zip").write_text("no zip")
    Path("data/figure.png").write_bytes(b"no patch")
    assert find_patch_tree(Path("data")) == archive
    assert len(open_data()) == 7
    shutil.copy(archive, "data/b.zip")
    with pytest.raises(DataError, match=r"data holds 2 zips \(archive.zip, b.zip\); name one"):
        open_data()
    tree.rename("data/IDC_regular_ps50_idx5")
    assert find_patch_tree(Path("data")) == Path("data")


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WSI_IDC_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("WSI_IDC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/wsi-idc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/wsi-idc")


def test_default_file_is_found_where_prepare_puts_it(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tree, Path("data/idc.h5"))
    assert open_data().path == Path("data/idc.h5")
