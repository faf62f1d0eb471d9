"""A patch tree in a zip gives what the tree gives, and a zip that is not one does no harm."""

import io
import shutil
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.packs import pack_content
from tests.trees import add_bad_files, file_name, make_tree, names, pixels_of, read_csv, save_png
from wsi_idc.core.errors import DataError
from wsi_idc.data.open_data import cache_folder, open_data
from wsi_idc.data.prepare import prepare
from wsi_idc.data.zip_store import ZipStore

GOOD = f"9/0/{file_name('9', 0, 3, 0)}"
OTHER = f"9/1/{file_name('9', 7, 7, 1)}"


def pack_zip(tree: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(tree.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(tree))
    return path


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of("9", 7, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def add(path: Path, name: str | zipfile.ZipInfo, data: bytes, **options) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data, **options)
    return path


def refused(path: Path, out: Path) -> str:
    """Return why ``prepare`` refuses a zip, in one line, leaving nothing."""
    with pytest.raises(DataError) as caught:
        prepare(path, out / "a.h5")
    assert not out.exists()
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


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


def test_data_may_be_a_zip_packed_once_into_the_cache(archive, tree):
    pack = open_data(archive)
    assert pack_content(pack.path) == pack_content(open_data(tree).path)
    state = pack.path.stat()
    archive.touch()
    assert open_data(archive).path.stat() == state
    add(archive, OTHER, png_bytes())
    assert len(open_data(archive)) == len(pack) + 1
    assert len(list(cache_folder().glob("packs/*/*.h5"))) == 3


def test_a_zip_that_was_mended_is_packed_anew(archive):
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        at = opened.getinfo(GOOD).header_offset
    archive.write_bytes(whole[:at] + b"PK\0\0" + whole[at + 4 :])
    assert len(open_data(archive)) == 6
    archive.write_bytes(whole)
    assert len(open_data(archive)) == 7


def test_zip64_and_what_stands_before_the_archive(archive, tmp_path, monkeypatch):
    expected = pack_content(prepare(archive, tmp_path / "a.h5").pack)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    large = tmp_path / "large.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(large, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.comment = b"PK\3\4 a comment"
    assert b"PK\6\7" in large.read_bytes()
    assert pack_content(prepare(large, tmp_path / "b.h5").pack) == expected
    large.write_bytes(b"PK\3\4 before" + large.read_bytes())
    # zipfile's zip64 locator holds an absolute position: found only without what stands before.
    shifted = tmp_path / "shifted.zip"
    shifted.write_bytes(b"PK\3\4 before" + archive.read_bytes())
    assert pack_content(prepare(shifted, tmp_path / "b.h5").pack) == expected


@pytest.mark.parametrize(
    "name", ["../evil.png", "/evil.png", "a/../../evil.png", "a\\b.png", "C:/evil.png", "a//b.png"]
)
def test_names_that_lead_out_are_refused(archive, tmp_path, name):
    said = refused(add(archive, name, b"x"), tmp_path / "out")
    assert f"refused, it holds a file named {name!r}, which is no plain path" in said


def test_a_bomb_is_refused(archive, tmp_path):
    bomb = add(archive, OTHER, bytes(10_000_000), compress_type=zipfile.ZIP_DEFLATED)
    said = refused(bomb, tmp_path / "out")
    assert f"refused, it looks like a decompression bomb: '{OTHER}' claims 10000000 bytes" in said


def test_many_small_bombs_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for col in range(20):
            archive.writestr(f"9/0/{file_name('9', 0, col, 0)}", bytes(3_000_000))
    assert "claim to hold 60000000" in refused(path, tmp_path / "out")


def test_overlapping_files_are_refused(archive, tmp_path):
    with zipfile.ZipFile(archive, "a") as opened:
        first = opened.getinfo(GOOD)
        for col in range(20, 40):
            again = zipfile.ZipInfo(f"9/0/{file_name('9', 0, col, 0)}")
            for slot in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(again, slot, getattr(first, slot))
            opened.filelist.append(again)
        opened._didModify = True
    assert "its files overlap" in refused(archive, tmp_path / "out")


def forge(path: Path, name: str, *, size: int | None = None, flags: int | None = None) -> Path:
    """Change what the table of contents says of a member."""
    data = bytearray(path.read_bytes())
    at = data.rfind(name.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    if size is not None:
        struct.pack_into("<I", data, at + 24, size)
    if flags is not None:
        struct.pack_into("<H", data, at + 8, flags)
    path.write_bytes(data)
    return path


def test_a_member_that_inflates_beyond_its_word_is_set_aside(archive, tmp_path):
    add(archive, OTHER, bytes(50_000_000), compress_type=zipfile.ZIP_DEFLATED)
    report = prepare(forge(archive, OTHER, size=5000), tmp_path / "a.h5")
    (problem,) = report.rejected
    assert (problem.path, problem.detail) == (
        OTHER,
        "holds more than the 5000 bytes that it claims",
    )
    assert report.num_patches == 7


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        (lambda path: add(path, link(OTHER), b"/etc/passwd"), "unreadable", "a link"),
        (
            lambda path: forge(add(path, OTHER, png_bytes()), OTHER, flags=1),
            "unreadable",
            "encrypted",
        ),
        (
            lambda path: add(path, OTHER, png_bytes(), compress_type=zipfile.ZIP_LZMA),
            "unreadable",
            "compression method 14 is not supported, only store and deflate",
        ),
        (
            lambda path: forge(add(path, OTHER, png_bytes()), OTHER, size=70),
            "unreadable",
            "damaged archive: two sizes for one file",
        ),
        (
            lambda path: add(path, OTHER, bytes(4_000_001)),
            "unreadable",
            "not a PNG file",
        ),
    ],
)
def test_members_that_cannot_be_read_are_set_aside(archive, tmp_path, change, reason, detail):
    report = prepare(change(archive), tmp_path / "a.h5")
    (problem,) = report.rejected
    assert (problem.path, problem.reason, problem.detail) == (OTHER, reason, detail)
    assert read_csv(tmp_path / "rejected.csv")[0]["path"] == OTHER
    assert report.num_patches == 7


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
        GOOD: "damaged archive: not the bytes that were packed",
        bad: "damaged archive: no file where there should be one",
    }


def test_cut_anywhere_it_is_no_zip(archive, tmp_path):
    whole = archive.read_bytes()
    cut = tmp_path / "cut.zip"
    for length in [4, 30, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 22, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        assert "not a complete zip" in refused(cut, tmp_path / "out")
    cut.write_bytes(b"")
    assert "neither a folder nor a zip" in refused(cut, tmp_path / "out")


def test_an_empty_zip_and_one_without_patches(tmp_path):
    path = tmp_path / "x.zip"
    zipfile.ZipFile(path, "w").close()
    assert "no PNG file found" in refused(path, tmp_path / "out")
    add(path, "slides/a.png", b"x")
    assert "'slides/a.png' (unknown name)" in refused(path, tmp_path / "out")


def test_nothing_stays_open(archive):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ZipStore(archive) as opened:
        assert opened.size(GOOD) == len(opened.read(GOOD)[0])
    with pytest.raises(DataError):
        ZipStore(Path(shutil.copy(__file__, archive)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_zip_that_other_programs_make(tree, tmp_path):
    if shutil.which("zip") is None:
        pytest.skip("no zip program here")
    path = tmp_path / "x.zip"
    subprocess.run(["zip", "-qr", path, "."], cwd=tree, check=True)
    assert len(open_data(path)) == 7


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_gives_a_pack_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("zip")
    path = pack_zip(make_tree(folder / "tree", {"9": [(0, 0, 0), (0, 1, 1)]}), folder / "x.zip")
    whole = bytearray(path.read_bytes())
    end = len(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(end - 350, end - 1), st.integers(4, end - 1)))
        whole[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, whole[at] ^ 1]))
    path.write_bytes(whole)
    try:
        report = prepare(path, folder / "out" / "a.h5", num_workers=1)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert report.num_patches in (1, 2)
        assert np.isin(names(folder / "out"), ["a.h5", "flagged.csv", "rejected.csv"]).all()
