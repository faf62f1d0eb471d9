"""A patch tree in a zip gives what the tree gives, and a zip that is not one does no harm."""

import shutil
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.packs import (
    add_bad_files,
    file_name,
    make_tree,
    pack_content,
    pixels_of,
    read_csv,
    save_png,
)
from wsi_idc.core.errors import DataError
from wsi_idc.data.open_data import cache_folder, open_data
from wsi_idc.data.patch_index import index_tree, open_patch_store
from wsi_idc.data.patch_store import FileIssue, UnreadablePatchError, ZipStore
from wsi_idc.data.pixels import is_decodable
from wsi_idc.data.prepare import prepare

GOOD = f"9/0/{file_name('9', 0, 3, 0)}"
OTHER = f"9/1/{file_name('9', 7, 7, 1)}"
PNG = cv2.imencode(".png", pixels_of("9", 7, 7))[1].tobytes()


def pack_zip(tree: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(tree.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(tree))
    return path


def add(path: Path, name: str | zipfile.ZipInfo, data: bytes, method: int | None = None) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data, method)
    return path


@pytest.fixture
def archive(tree: Path, tmp_path: Path) -> Path:
    return pack_zip(tree, tmp_path / "tree.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_same_pack_and_lists_as_from_the_tree(tree, tmp_path, method):
    add_bad_files(tree)
    for link in tree.rglob("*"):
        if link.is_symlink():
            link.unlink()
    save_png(tree / GOOD, pixels_of("9", 0, 3, width=37))
    shutil.copytree(tree, tree / "IDC_regular_ps50_idx5")
    with (tree / "IDC_regular_ps50_idx5" / GOOD).open("ab") as file:
        file.write(b"more")
    (tree / "readme.txt").touch()
    from_tree = prepare(tree, tmp_path / "a" / "a.h5")
    from_zip = prepare(pack_zip(tree, tmp_path / "x.zip", method), tmp_path / "b" / "a.h5")
    assert pack_content(from_zip.pack) == pack_content(from_tree.pack)
    assert from_zip.as_dict() | {"pack": ""} == from_tree.as_dict() | {"pack": ""}
    assert {problem.reason for problem in from_zip.flagged} == {"edge patch", "nested copy"}
    for name in ("rejected.csv", "flagged.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_many_threads_read_one_archive(tmp_path):
    cells = [(row, col, col % 2) for row in range(30) for col in range(30)]
    tree = make_tree(tmp_path / "tree", {"1": cells})
    packed = prepare(pack_zip(tree, tmp_path / "x.zip"), tmp_path / "a.h5", num_workers=8).pack
    assert pack_content(packed) == pack_content(prepare(tree, tmp_path / "b.h5").pack)


def test_a_zip_is_packed_once_into_the_cache(archive, tree):
    pack = open_data(archive)
    assert pack_content(pack.path) == pack_content(open_data(tree).path)
    state = pack.path.stat()
    archive.touch()
    assert open_data(archive).path.stat() == state
    add(archive, OTHER, PNG)
    assert len(open_data(archive)) == len(pack) + 1
    assert len(list(cache_folder().glob("packs/*/*.h5"))) == 3


def test_a_repaired_zip_is_packed_again(archive):
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        at = opened.getinfo(GOOD).header_offset
    archive.write_bytes(whole[:at] + b"PK\0\0" + whole[at + 4 :])
    assert len(open_data(archive)) == 6
    archive.write_bytes(whole)
    assert len(open_data(archive)) == 7


def test_zip64_and_bytes_before_the_archive(archive, tmp_path, monkeypatch):
    expected = pack_content(prepare(archive, tmp_path / "a.h5").pack)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    large = tmp_path / "large.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(large, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.comment = b"PK\3\4 a comment"
    assert b"PK\6\7" in large.read_bytes()
    with ZipStore(large) as store:
        assert store._count_entries() == len(target.namelist())
    shifted = tmp_path / "shifted.zip"
    for path in (archive, large):
        shifted.write_bytes(b"PK\3\4 before" + path.read_bytes())
        for source in (path, shifted):
            assert pack_content(prepare(source, tmp_path / "b.h5").pack) == expected


def overlap(path: Path) -> Path:
    """Add entries to the directory of a zip that share the bytes of one file."""
    with zipfile.ZipFile(path, "a") as opened:
        first = opened.getinfo(GOOD)
        for col in range(20, 40):
            entry = zipfile.ZipInfo(f"9/0/{file_name('9', 0, col, 0)}")
            for slot in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(entry, slot, getattr(first, slot))
            opened.filelist.append(entry)
        opened._didModify = True
    return path


def new_zip(path: Path, num_bytes: int, *names: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in names:
            opened.writestr(name, bytes(num_bytes))
    return path


def cut_to(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


FLAGS, SIZE, DEFLATED, LZMA = 8, 24, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA
OUTSIDE = [
    "../evil.png",
    "/evil.png",
    "a/../../evil.png",
    "a\\..\\..\\b.png",
    "C:/evil.png",
    "a//b.png",
]
BOMB = "refused as a possible decompression bomb: "


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        *(
            (add, (name, b"x"), f"refused, because {name!r} is not a relative path")
            for name in OUTSIDE
        ),
        (add, (OTHER, bytes(10**7), DEFLATED), f"{BOMB}'{OTHER}' claims 10000000 bytes"),
        (new_zip, (3_000_000, *(f"9/{i}.png" for i in range(20))), "bytes claim to hold 60000000"),
        (overlap, (), f"{BOMB}its files overlap"),
        (new_zip, (1,), "no PNG file found"),
        (new_zip, (1, "slides/a.png"), "'slides/a.png' (unknown name: not"),
        *((cut_to, (n,), "not a complete zip") for n in (4, 30, 1000, -3000, -30, -22, -1)),
        (cut_to, (0,), "neither a folder nor a zip"),
    ],
)
def test_a_damaged_or_unsafe_zip_is_refused_in_one_line(
    archive, tmp_path, change, arguments, reason
):
    path = change(archive, *arguments)
    with pytest.raises(DataError) as caught:
        prepare(path, tmp_path / "out" / "a.h5")
    assert not (tmp_path / "out").exists()
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_a_zip_with_too_many_entries_is_refused_before_zipfile_reads_them(archive, monkeypatch):
    monkeypatch.setattr("wsi_idc.data.patch_store.MAX_ENTRIES", 5)
    with zipfile.ZipFile(archive) as opened:
        num = len(opened.namelist())
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(DataError, match=rf"\(it has {num} entries, more than 5\); get it again"):
        ZipStore(archive)


def test_a_directory_that_claims_very_many_bytes_is_refused_before_it_is_read(archive):
    data = archive.read_bytes()
    end = bytearray(data[data.rfind(b"PK\5\6") :])
    struct.pack_into("<II", end, 12, 2**31, 0)
    with archive.open("r+b") as file:
        file.truncate(2**32 - 1000)
        file.seek(0, 2)
        file.write(end)
    with pytest.raises(DataError, match="its directory has an impossible size of 2147483648"):
        ZipStore(archive)


def forge(path: Path, data: bytes, offset: int, value: int, method: int | None = None) -> Path:
    """Add a member and change a field at ``offset`` of its header in the directory of the zip."""
    content = bytearray(add(path, OTHER, data, method).read_bytes())
    header = content.rfind(OTHER.encode()) - 46
    assert content[header : header + 4] == b"PK\1\2"
    struct.pack_into("<H" if offset == FLAGS else "<I", content, header + offset, value)
    path.write_bytes(content)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("change", "arguments", "detail"),
    [
        (add, (link(OTHER), b"/etc/passwd"), "a link"),
        (forge, (PNG, FLAGS, 1), "encrypted"),
        (add, (OTHER, PNG, LZMA), "compression method 14 is not supported; use store or deflate"),
        (forge, (PNG, SIZE, 70), "damaged archive: two sizes for one file"),
        (add, (OTHER, bytes(4_000_001)), "not a PNG file"),
        (
            *(forge, (bytes(5 * 10**7), SIZE, 5000, DEFLATED)),
            "damaged archive: file exceeds its recorded 5000 bytes",
        ),
    ],
)
def test_members_that_cannot_be_read_are_set_aside(archive, tmp_path, change, arguments, detail):
    report = prepare(change(archive, *arguments), tmp_path / "a.h5")
    assert report.rejected == (FileIssue(OTHER, "unreadable", detail),)
    assert read_csv(tmp_path / "rejected.csv")[0]["path"] == OTHER
    assert report.num_patches == 7


@pytest.mark.parametrize("change", [lambda name: f"./{name}", lambda name: name.replace("/", "\\")])
def test_names_with_a_dot_or_backslashes_are_read(archive, tmp_path, change):
    expected = pack_content(prepare(archive, tmp_path / "a.h5").pack)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(tmp_path / "b.zip", "w") as target:
        target.writestr(change("./"), b"")
        for name in source.namelist():
            target.writestr(change(name), source.read(name))
    assert pack_content(prepare(tmp_path / "b.zip", tmp_path / "b.h5").pack) == expected


def test_a_directory_that_lists_only_its_last_files_is_refused(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        names, start = [info.filename for info in opened.infolist()], opened.start_dir
    data = bytearray(archive.read_bytes())
    end, middle = data.rfind(b"PK\5\6"), data.rfind(names[-5].encode()) - 46
    assert start < middle < end
    struct.pack_into("<HHII", data, end + 8, 5, 5, end - middle, middle)
    archive.write_bytes(data)
    with pytest.raises(DataError, match="it has more files than its end record counts"):
        prepare(archive, tmp_path / "a.h5")
    (tmp_path / "two.zip").write_bytes(new_zip(tmp_path / "b.zip", 1, GOOD).read_bytes() * 2)
    with pytest.raises(DataError, match="it has more files than its end record counts"):
        prepare(tmp_path / "two.zip", tmp_path / "a.h5")


def test_a_count_that_overflows_does_not_matter(archive, tmp_path):
    expected = pack_content(prepare(archive, tmp_path / "a.h5").pack)
    data = bytearray(archive.read_bytes())
    struct.pack_into("<HH", data, data.rfind(b"PK\5\6") + 8, 2, 2)
    archive.write_bytes(data)
    assert pack_content(prepare(archive, tmp_path / "b.h5").pack) == expected


def test_a_zip_that_is_truncated_while_it_is_read(archive):
    with ZipStore(archive) as store:
        cut_to(archive, 10)
        with pytest.raises(UnreadablePatchError, match="cannot be read: the zip was truncated"):
            store.read(GOOD)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_one_name_the_first_is_kept(archive, tmp_path):
    expected = pack_content(prepare(archive, tmp_path / "a.h5").pack)
    report = prepare(add(archive, GOOD, b"other"), tmp_path / "b.h5")
    assert [(p.path, p.reason) for p in report.rejected] == [(GOOD, "duplicate name")]
    assert pack_content(report.pack) == expected


def test_damage_inside_is_set_aside_by_name(tree, tmp_path):
    path = pack_zip(tree, tmp_path / "x.zip", zipfile.ZIP_STORED)
    bad = f"10253/0/{file_name('10253', 0, 0, 0)}"
    with zipfile.ZipFile(path) as archive:
        info, other = archive.getinfo(GOOD), archive.getinfo(bad)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(GOOD) + 1000] ^= 1
    data[other.header_offset] ^= 1
    path.write_bytes(data)
    report = prepare(path, tmp_path / "a.h5")
    assert {problem.path: problem.detail for problem in report.rejected} == {
        GOOD: "damaged archive: wrong size or checksum",
        bad: "damaged archive: no file at the recorded position",
    }


def test_no_file_stays_open(archive):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ZipStore(archive) as opened:
        assert opened.size(GOOD) == len(opened.read(GOOD)[0])
    with pytest.raises(DataError):
        ZipStore(Path(shutil.copy(__file__, archive)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_zip_of_another_program(tree, tmp_path):
    if shutil.which("zip") is None:
        pytest.skip("no zip program here")
    path = tmp_path / "x.zip"
    subprocess.run(["zip", "-qr", path, "."], cwd=tree, check=True)
    assert len(open_data(path)) == 7


@pytest.fixture(scope="module")
def small_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a zip of two patches."""
    folder = tmp_path_factory.mktemp("small")
    tree = make_tree(folder / "tree", {"9": [(0, 0, 0), (0, 1, 1)]})
    return pack_zip(tree, folder / "x.zip")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_zip_with_any_damaged_bytes_is_read_or_refused_in_one_line(small_zip, data):
    damaged = bytearray(small_zip.read_bytes())
    end = len(damaged)
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.one_of(st.integers(end - 350, end - 1), st.integers(4, end - 1)))
        damaged[i] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, damaged[i] ^ 1]))
    path = small_zip.with_name("damaged.zip")
    path.write_bytes(damaged)
    try:
        with open_patch_store(path) as store:
            paths = index_tree(store, patch_px=50).table["path"].tolist()
            assert len(paths) in (1, 2)
            for name in paths:
                is_decodable(store, name, patch_px=50)  # raises nothing
    except DataError as error:
        assert len(str(error).splitlines()) == 1
