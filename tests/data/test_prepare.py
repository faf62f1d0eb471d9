import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.trees import add_patch, file_name, make_tree, pixels_of, save_png
from wsi_idc.core.errors import BusyError, DataError, WorkerError, WsiIdcError
from wsi_idc.core.files import resumable_path
from wsi_idc.data.children import DecodeWorkerPool
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_store import FileIssue, FolderStore, UnreadablePatchError
from wsi_idc.data.prepare import prepare

# A shell's background job, and all that it starts, ignores Ctrl-C unless told otherwise.
INTERRUPTED = """
import signal
import sys
from pathlib import Path
from wsi_idc.data import decode, prepare
signal.signal(signal.SIGINT, signal.default_int_handler)
decode._MIN_FILES_FOR_PROCESSES = int(sys.argv[3])
print("ready", flush=True)
prepare.prepare(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=2)
"""

NEVER, ALWAYS = 10**9, 1  # from how many files on processes decode, not threads


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(path: Path) -> dict[str, object]:
    """Return all of a pack but its provenance, which holds the time."""
    with h5py.File(path) as file:
        data = {name: np.asarray(file[name]).tobytes() for name in ("patches", "x", "y", "label")}
        data |= {name: list(file[name].asstr()) for name in ("patients", "path")}
        attributes = {key: np.asarray(value).tolist() for key, value in file.attrs.items()}
        del attributes["provenance"]
        return data | attributes


def test_report_and_files(tree, tmp_path):
    out = tmp_path / "new" / "idc.h5"
    report = prepare(tree, out)
    assert names(out.parent) == ["flagged.csv", "idc.h5", "rejected.csv"]
    assert report.pack == out
    assert (report.num_patches, report.num_patients) == (7, 3)
    assert (report.num_idc, report.num_non_idc, report.num_edge) == (3, 4, 0)
    assert (report.rejected, report.flagged, report.num_other_files) == ((), (), 0)
    assert read_csv(out.with_name("rejected.csv")) == []


def test_mean_and_std_are_those_of_numpy(pack):
    scaled = pack.patches / 255
    np.testing.assert_allclose(pack.info.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(pack.info.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_mpp_is_assumed_or_given(tree, tmp_path, pack):
    assert (pack.info.mpp, pack.info.mpp_source) == (4.0, "assumed")
    info = prepare(tree, tmp_path / "a.h5", mpp=3.9).info
    assert (info.mpp, info.mpp_source) == (3.9, "given")


def test_provenance_says_where_from(tree, pack):
    with h5py.File(pack.path) as file:
        record = json.loads(file.attrs["provenance"])
    assert record["source"] == str(tree)
    assert record["program"] == "wsi-idc"


def test_edge_patch_is_padded_white_and_flagged(tree, tmp_path):
    path = f"9/0/{file_name('9', 0, 3, 0)}"
    pixels = pixels_of("9", 0, 3, width=37)
    save_png(tree / path, pixels)
    report = prepare(tree, tmp_path / "a.h5")
    assert report.num_edge == 1
    assert report.flagged == (FileIssue(path, "edge patch", "37x50 px, padded white"),)
    pack = Pack(report.pack)
    assert pack.index.loc[5, ["height", "width"]].tolist() == [50, 37]
    assert np.array_equal(pack.patches[5, :, :37], pixels)
    assert (pack.patches[5, :, 37:] == 255).all()
    assert read_csv(tmp_path / "flagged.csv")[0]["reason"] == "edge patch"


def test_a_small_patch_that_others_lie_beyond_is_told_apart(tree, tmp_path):
    path = f"9/0/{file_name('9', 0, 3, 0)}"
    save_png(tree / path, pixels_of("9", 0, 3, height=37))  # patient 9 goes on in row 4
    report = prepare(tree, tmp_path / "a.h5")
    assert report.num_edge == 1
    assert report.flagged == (FileIssue(path, "small inside the slide", "50x37 px, padded white"),)


def spoil(tree: Path) -> dict[str, tuple[str, str]]:
    """Add files that cannot be used; return path to reason and start of detail."""
    whole = (tree / f"9/0/{file_name('9', 0, 3, 0)}").read_bytes()
    expected = {}
    spoilt = [
        (b"", "empty file"),
        (b"x,y\n1,1\n", "not a PNG file"),
        (whole[:20], "damaged PNG: no header"),
        (whole[: len(whole) // 2], "truncated PNG"),
        (whole[:-1], "truncated PNG"),
        (whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "damaged PNG: a checksum is wrong"),
    ]
    for col, (data, detail) in enumerate(spoilt):
        path = f"9/1/{file_name('9', 30, col, 1)}"
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_bytes(data)
        expected[path] = ("unreadable", detail)
    pictures = [
        (np.zeros((51, 50, 3), np.uint8), "50x51 px is larger than a 50x50 patch"),
        (np.zeros((5000, 5000, 3), np.uint8), "5000x5000 px is larger"),
        (np.zeros((50, 50), np.uint16), "16 bits a channel"),
    ]
    for col, (pixels, detail) in enumerate(pictures):
        path = f"9/1/{file_name('9', 31, col, 1)}"
        save_png(tree / path, pixels)
        expected[path] = ("unreadable", detail)
    path = f"9/1/{file_name('9', 32, 0, 1)}"
    (tree / path).symlink_to("/nowhere.png")
    expected[path] = ("unreadable", "cannot be read: No such file or directory")
    path = f"9/1/{file_name('9', 33, 0, 0)}"
    save_png(tree / path, pixels_of("9", 33, 0))
    expected[path] = ("class contradicts folder", "name says class 0, folder says 1")
    return expected


def test_every_bad_file_is_named_and_the_good_ones_are_packed(tree, tmp_path):
    before = content(prepare(tree, tmp_path / "good.h5").pack)
    expected = spoil(tree)
    report = prepare(tree, tmp_path / "a.h5")
    assert {p.path: p.reason for p in report.rejected} == {p: r for p, (r, _) in expected.items()}
    for problem in report.rejected:
        assert problem.detail.startswith(expected[problem.path][1])
    listed = read_csv(tmp_path / "rejected.csv")
    assert [row["path"] for row in listed] == sorted(expected)
    assert content(report.pack) == before


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_kinds_of_png(tree, tmp_path, mode):
    path = tree / f"9/0/{file_name('9', 0, 3, 0)}"
    image = Image.open(path).convert(mode)
    image.save(path)
    pack = Pack(prepare(tree, tmp_path / "a.h5").pack)
    assert np.array_equal(pack.patches[5], np.asarray(image.convert("RGB")))


def test_a_file_that_is_no_pack_is_not_replaced(tree, tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt is there and is no pack"):
        prepare(tree, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("name", ["rejected.csv", "flagged.csv"])
@pytest.mark.parametrize("mine", ["path,reason,details\na,b,c\n", "", None])
def test_a_list_of_another_program_is_not_replaced(tree, tmp_path, name, mine, monkeypatch):
    path, out = tmp_path / name, tmp_path / "idc.h5"
    path.mkdir() if mine is None else path.write_text(mine)
    monkeypatch.setattr("wsi_idc.data.prepare.decode_tree", None)  # ahead of the work
    with pytest.raises(DataError, match=f"{name} is of something else and would be lost; rename"):
        prepare(tree, out)
    assert mine is None or path.read_text() == mine
    assert not out.exists()


def test_lists_of_another_pack_are_replaced_with_a_word(tree, tmp_path, caplog):
    for _ in range(2):
        prepare(tree, tmp_path / "a.h5")
    (tmp_path / "rejected.csv").write_bytes(b"path,reason,detail\r\n")
    assert caplog.messages == []
    prepare(tree, tmp_path / "b.h5")
    line = "rejected.csv and flagged.csv beside a.h5 are of this pack from now on"
    assert caplog.messages == [line]
    assert read_csv(tmp_path / "rejected.csv") == []


def test_nested_copy_changes_nothing(tree, tmp_path):
    before = content(prepare(tree, tmp_path / "a.h5").pack)
    shutil.copytree(tree, tree / "IDC_regular_ps50_idx5")
    assert content(prepare(tree, tmp_path / "b.h5").pack) == before


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_damaged_patch_is_taken_from_its_whole_copy(tree, tmp_path, as_zip):
    good = prepare(tree, tmp_path / "a.h5").pack
    expected, paths = content(good), Pack(good).paths()
    for folder in ("b", "c"):
        shutil.copytree(tree, tmp_path / folder)
        (tmp_path / folder).rename(tree / f"copy_{folder}")
    path = f"9/0/{file_name('9', 0, 3, 0)}"
    for damaged in (path, f"copy_b/{path}"):  # as large as they were
        (tree / damaged).write_bytes(bytes((tree / damaged).stat().st_size))
    root = Path(shutil.make_archive(str(tmp_path / "x"), "zip", tree)) if as_zip else tree
    report = prepare(root, tmp_path / "b.h5")
    copy = f"copy_c/{path}"
    detail = f"not a PNG file; its copy {copy} is packed"
    assert report.rejected == (FileIssue(path, "unreadable", detail),)
    assert report.num_patches == 7
    assert Pack(report.pack).paths() == [copy if one == path else one for one in paths]
    assert content(report.pack) == expected | {"path": Pack(report.pack).paths()}


def test_a_damaged_patch_without_a_whole_copy_is_left_out(tree, tmp_path):
    path = f"9/0/{file_name('9', 0, 3, 0)}"
    size = (tree / path).stat().st_size
    for damaged in (tree / path, tree / "copy" / path):
        damaged.parent.mkdir(parents=True, exist_ok=True)
        damaged.write_bytes(bytes(size))
    report = prepare(tree, tmp_path / "a.h5")
    assert report.rejected == (FileIssue(path, "unreadable", "not a PNG file"),)
    assert report.num_patches == 6


def test_a_stopped_run_goes_on_with_the_copies_of_damaged_patches(
    square_tree, tmp_path, monkeypatch
):
    path = f"1/1/{file_name('1', 10, 1, 1)}"  # of the second chunk
    (square_tree / "copy" / path).parent.mkdir(parents=True)
    shutil.copy(square_tree / path, square_tree / "copy" / path)
    expected = content(prepare(square_tree, tmp_path / "a.h5").pack)["patches"]
    (square_tree / path).write_bytes(bytes((square_tree / path).stat().st_size))
    out = tmp_path / "b.h5"
    leave_chunks(square_tree, out, monkeypatch)
    report = prepare(square_tree, out)
    assert content(out)["patches"] == expected
    detail = f"not a PNG file; its copy copy/{path} is packed"
    assert report.rejected == (FileIssue(path, "unreadable", detail),)


def test_fingerprint_follows_content_not_the_place(tree, tmp_path):
    def fingerprint(root: Path) -> str:
        return prepare(root, tmp_path / "a.h5").info.source_fingerprint

    before = fingerprint(tree)
    assert len(before) == 64
    moved = shutil.copytree(tree, tmp_path / "up" / "IDC_regular_ps50_idx5")
    assert fingerprint(moved) == fingerprint(moved.parent) == before
    path = moved / f"9/0/{file_name('9', 0, 3, 0)}"
    pixels = pixels_of("9", 0, 3)
    pixels[0, 0, 0] ^= 1
    save_png(path, pixels)
    changed = fingerprint(moved)
    path.write_bytes(path.read_bytes()[:-5] + b"\0" + path.read_bytes()[-4:])
    assert len({before, changed, fingerprint(moved)}) == 3


def test_any_number_of_workers_gives_the_same(tmp_path):
    cells = [(row, col, col % 2) for row in range(20) for col in range(20)]
    tree = make_tree(tmp_path / "tree", {"1": cells})
    packs = [prepare(tree, tmp_path / f"{n}.h5", num_workers=n).pack for n in (1, 2, 7)]
    first = content(packs[0])
    assert [content(pack) == first for pack in packs] == [True] * 3
    assert np.array_equal(Pack(packs[0]).patches[399], pixels_of("1", 19, 19))


def test_out_inside_the_tree(tree):
    out = tree / "idc.h5"
    first = content(prepare(tree, out).pack)
    report = prepare(tree, out)
    assert content(out) == first
    assert report.num_other_files == 3


def test_leftovers_of_a_killed_run_are_written_over(tree, tmp_path):
    out = tmp_path / "out" / "a.h5"
    out.parent.mkdir()
    for name in (".a.h5.partial", ".a.h5.pixels.partial"):
        (out.parent / name).write_bytes(bytes(10**6))
    prepare(tree, out)
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]
    assert out.stat().st_size < 10**6
    assert len(Pack(out)) == 7


def test_busy(tree, tmp_path):
    out = tmp_path / "a.h5"
    with resumable_path(out.with_name("a.h5.pixels")), pytest.raises(BusyError):
        prepare(tree, out)
    assert not out.exists()


def test_a_failed_run_keeps_the_old_pack(tree, tmp_path):
    out = tmp_path / "out" / "a.h5"
    prepare(tree, out)
    before = out.read_bytes()
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no patch could be read; the first, .+: empty file"):
        prepare(tree, out)
    assert out.read_bytes() == before
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_px": 0}, "a patch of 0 px cannot be packed; choose 1 to 255 px"),
        ({"patch_px": 256}, "a patch of 256 px cannot be packed"),
        ({"mpp": 0.0}, "0.0 microns per pixel make no sense; give 0.001 to 100"),
        ({"mpp": float("nan")}, "nan microns per pixel make no sense"),
    ],
)
def test_senseless_sizes(tree, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare(tree, tmp_path / "a.h5", **options)


def test_out_that_cannot_be_written(tree, tmp_path):
    with pytest.raises(DataError, match="is a folder; --out names the pack"):
        prepare(tree, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(WsiIdcError, match="cannot be written there"):
        prepare(tree, tmp_path / "file" / "a.h5")


def test_a_few_bad_files_are_logged_and_the_rest_is_in_the_list(tmp_path, caplog):
    tree = make_tree(tmp_path / "tree")
    for col in range(40):
        (tree / "9" / "0" / file_name("9", 9, col, 0)).touch()
    report = prepare(tree, tmp_path / "a.h5")
    assert len(report.rejected) == len(read_csv(tmp_path / "rejected.csv")) == 40
    assert len([line for line in caplog.messages if line.startswith("left out")]) == 20


def test_bigger_patches(tmp_path):
    tree = tmp_path / "tree"
    for row, col, label in [(0, 0, 0), (0, 1, 1)]:
        pixels = pixels_of("1", row, col, height=96, width=96)
        save_png(tree / f"1/{label}/1_idx5_x{col * 96}_y0_class{label}.png", pixels)
    pack = Pack(prepare(tree, tmp_path / "a.h5", patch_px=96).pack)
    assert pack.patches.shape == (2, 96, 96, 3)
    assert pack.index["x"].tolist() == [0, 96]


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes decode, however small the tree."""
    monkeypatch.setattr("wsi_idc.data.decode._MIN_FILES_FOR_PROCESSES", ALWAYS)


@pytest.fixture
def square_tree(tmp_path: Path) -> Path:
    """Return a tree of 20 rows of 20 patches, each its own."""
    cells = [(row, col, col % 2) for row in range(20) for col in range(20)]
    return make_tree(tmp_path / "tree", {"1": cells})


@pytest.fixture
def long_tree(tmp_path: Path) -> Path:
    """Return a tree of 12,000 links to a few patches."""
    tree = tmp_path / "tree"
    sources = [add_patch(tree, "1", 70, col, 0) for col in range(7)]
    for at in range(12_000):
        os.link(sources[at % 7], tree / "1" / "0" / file_name("1", at // 200, at % 200, 0))
    return tree


def start(tree: Path, out: Path, min_files: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tree), str(out), str(min_files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupt(tree: Path, out: Path, min_files: int) -> float:
    """Press Ctrl-C while patches are being packed; return the seconds until the process is gone.

    On a busy machine the process may be done before the signal is sent: then once more.
    """
    raw = out.with_name(f".{out.name}.pixels.partial")
    for _ in range(20):
        with start(tree, out, min_files) as child:
            while child.poll() is None and not (raw.exists() and raw.stat().st_size):
                time.sleep(0.001)
            # As a terminal does it: to the process and all that it has started.
            os.killpg(child.pid, signal.SIGINT)
            begin = time.monotonic()
            _, errors = child.communicate(timeout=20)
        if "KeyboardInterrupt" in errors:
            assert errors.count("Traceback") == 1
            return time.monotonic() - begin
        shutil.rmtree(out.parent)
    raise AssertionError("the process was never caught at work")


@pytest.mark.parametrize("min_files", [NEVER, ALWAYS])
def test_ctrl_c_leaves_nobody_and_the_next_run_goes_on(long_tree, tmp_path, caplog, min_files):
    out = tmp_path / "out" / "a.h5"
    raw = out.with_name(".a.h5.pixels.partial")
    assert interrupt(long_tree, out, min_files) < 5
    assert names(out.parent) == [raw.name]
    caplog.set_level("INFO", logger="wsi_idc")
    prepare(long_tree, out)
    (line,) = [line for line in caplog.messages if line.startswith("going on after")]
    assert int(line.split()[3]) >= 128
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]
    assert content(out) == content(prepare(long_tree, tmp_path / "b.h5").pack)


@pytest.mark.slow
@pytest.mark.parametrize("min_files", [NEVER, ALWAYS])
def test_killed_ten_times_it_ends_in_the_same_bytes(long_tree, tmp_path, min_files):
    (long_tree / "1" / "0" / file_name("1", 60, 0, 0)).write_bytes(b"bad")
    out = tmp_path / "out" / "a.h5"
    rng = np.random.default_rng(0)
    for kill in range(10):
        with start(long_tree, out, min_files) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.4) + 0.03 * kill)
            child.kill()
    report = prepare(long_tree, out)
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]
    undisturbed = prepare(long_tree, tmp_path / "b" / "a.h5")
    assert content(out) == content(undisturbed.pack)
    assert [problem.path for problem in report.rejected] == [
        problem.path for problem in undisturbed.rejected
    ]
    for name in ("rejected.csv", "flagged.csv"):
        assert out.with_name(name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def leave_chunks(tree: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop prepare when all is decoded; return what it leaves for the next run."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("wsi_idc.data.prepare._good_rows", stop)
        prepare(tree, out)
    return out.with_name(f".{out.name}.pixels.partial")


def decoded_again(tree: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Prepare and return how many files were read."""
    read = []
    with monkeypatch.context() as patch:
        folder = FolderStore.read
        patch.setattr(
            FolderStore, "read", lambda self, path: read.append(path) or folder(self, path)
        )
        prepare(tree, out)
    return len(read)


def test_what_was_decoded_is_not_decoded_again(square_tree, tmp_path, monkeypatch):
    tree, out = square_tree, tmp_path / "a.h5"
    (tree / "1/0" / file_name("1", 0, 0, 0)).write_bytes(b"bad")
    expected = content(prepare(tree, tmp_path / "b.h5").pack)
    raw = leave_chunks(tree, out, monkeypatch)
    whole = raw.read_bytes()
    assert decoded_again(tree, out, monkeypatch) == 1  # the bad one
    assert content(out) == expected
    # 400 files in chunks of 128: what is whole is kept, up to the first byte that is wrong.
    second = 20 + 2**18 + 128 * 7500
    assert whole[second:].startswith(b"WSIchunk")

    def flipped(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    for damaged, expected_reads in [
        (whole[:-1], 400 - 3 * 128 + 1),
        (whole[: second + 500_000], 400 - 128 + 1),
        (whole[:second], 400 - 128 + 1),
        (flipped(127 * 7500), 400),  # in the pixels
        (flipped(second + 30), 400 - 128 + 1),  # in the text
        (flipped(second + 11), 400 - 128 + 1),  # in the length of the text
        (flipped(second + 19), 400 - 128 + 1),  # in the checksum
        (bytes(len(whole)), 400),
        (whole + b"more", 1),
        (b"", 400),
        (b"another program's", 400),
    ]:
        raw.write_bytes(damaged)
        assert decoded_again(tree, out, monkeypatch) == expected_reads
        assert content(out) == expected
        assert not raw.exists()


def test_a_file_that_changed_is_decoded_again(square_tree, tmp_path, monkeypatch):
    tree, out = square_tree, tmp_path / "a.h5"
    leave_chunks(tree, out, monkeypatch)
    path = tree / "1/1" / file_name("1", 10, 1, 1)  # of the second chunk
    pixels = pixels_of("2", 0, 0)
    save_png(path, pixels)
    assert decoded_again(tree, out, monkeypatch) == 400 - 128
    assert np.array_equal(Pack(out).patches[201], pixels)
    assert content(out) == content(prepare(tree, tmp_path / "b.h5").pack)


def test_what_could_not_be_opened_is_tried_again(square_tree, tmp_path, monkeypatch):
    out = tmp_path / "a.h5"
    path = square_tree / "1/1" / file_name("1", 10, 1, 1)  # of the second chunk
    pixels = path.rename(tmp_path / "x.png")
    path.symlink_to(tmp_path / "y.png")
    leave_chunks(square_tree, out, monkeypatch)
    assert decoded_again(square_tree, out, monkeypatch) == 1
    assert len(Pack(out)) == 399
    leave_chunks(square_tree, out, monkeypatch)
    pixels.rename(tmp_path / "y.png")
    assert decoded_again(square_tree, out, monkeypatch) == 400 - 128
    assert np.array_equal(Pack(out).patches[201], pixels_of("1", 10, 1))


def test_what_a_stopped_run_was_not_allowed_to_read_is_tried_again(
    square_tree, tmp_path, monkeypatch
):
    out = tmp_path / "a.h5"
    read, path = FolderStore.read, f"1/1/{file_name('1', 10, 1, 1)}"

    def refuse(self: FolderStore, asked: str) -> tuple[bytes, str]:
        if asked == path:
            raise UnreadablePatchError("cannot be read: Permission denied")
        return read(self, asked)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "read", refuse)
        leave_chunks(square_tree, out, monkeypatch)
    prepare(square_tree, out)
    assert len(Pack(out)) == 400


def test_a_file_that_changes_while_it_is_read_is_decoded_again(square_tree, tmp_path, monkeypatch):
    out = tmp_path / "a.h5"
    path = square_tree / "1/1" / file_name("1", 10, 1, 1)  # of the second chunk
    read = os.read

    def late(fd: int, num_bytes: int) -> bytes:
        data = read(fd, num_bytes)
        if os.path.samestat(os.fstat(fd), path.stat()):
            save_png(path, pixels_of("2", 0, 0))
        return data

    with monkeypatch.context() as patch:
        patch.setattr("wsi_idc.data.patch_store.os.read", late)
        leave_chunks(square_tree, out, monkeypatch)
    assert decoded_again(square_tree, out, monkeypatch) == 400 - 128
    assert np.array_equal(Pack(out).patches[201], pixels_of("2", 0, 0))


@pytest.mark.usefixtures("in_processes")
def test_processes_give_what_threads_give(square_tree, tmp_path, monkeypatch):
    tree, out = make_tree(square_tree), tmp_path / "b" / "a.h5"
    threads = prepare(tree, tmp_path / "a" / "a.h5", num_workers=1)
    expected = spoil(tree)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert decoded_again(tree, out, monkeypatch) == 0  # in this process
    assert content(out) == content(threads.pack)
    assert {row["path"] for row in read_csv(out.with_name("rejected.csv"))} == set(expected)


@pytest.mark.usefixtures("in_processes")
def test_a_killed_process_is_one_line_and_the_next_run_goes_on(square_tree, tmp_path, monkeypatch):
    out = tmp_path / "out" / "a.h5"
    expected = content(prepare(square_tree, tmp_path / "b.h5").pack)
    start_all = DecodeWorkerPool.__init__

    def kill_one(self: DecodeWorkerPool, num: int) -> None:
        start_all(self, num)
        self._all[0].kill()

    with monkeypatch.context() as patch, pytest.raises(WorkerError) as caught:
        patch.setattr(DecodeWorkerPool, "__init__", kill_one)
        prepare(square_tree, out, num_workers=2)
    assert str(caught.value).startswith("a process that decodes patches was killed (SIGKILL), ")
    assert len(str(caught.value).splitlines()) == 1
    assert names(out.parent) == [".a.h5.pixels.partial"]
    assert content(prepare(square_tree, out, num_workers=2).pack) == expected
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]


@pytest.mark.usefixtures("in_processes")
def test_a_disk_that_is_full_for_a_process_is_one_line(square_tree, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(WsiIdcError, match="file too large; free some space and run again"):
            prepare(square_tree, tmp_path / "out" / "a.h5", num_workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "out") == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find children in")
def test_no_process_outlives_a_killed_parent(long_tree, tmp_path):
    with start(long_tree, tmp_path / "a.h5", ALWAYS) as parent:
        while parent.poll() is None and len(children_of(parent.pid)) < 2:
            time.sleep(0.001)
        children = children_of(parent.pid)
        parent.kill()
    assert len(children) == 2
    end = time.monotonic() + 10
    while any(map(is_running, children)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_patch_size_starts_over(tree, tmp_path, monkeypatch):
    out = tmp_path / "a.h5"
    leave_chunks(tree, out, monkeypatch)
    report = prepare(tree, out, patch_px=50, mpp=2.0)
    assert report.info.mpp == 2.0
    leave_chunks(tree, out, monkeypatch)
    with pytest.raises(DataError, match="no patch could be read"):
        prepare(tree, out, patch_px=25)


@pytest.mark.slow
@pytest.mark.real
def test_real_patches_of_all_archives(real_tree_of_all, tmp_path):
    report = prepare(real_tree_of_all, tmp_path / "a.h5")
    assert (report.num_patches, report.num_patients, report.num_edge) == (26_965, 233, 231)
    assert report.rejected == ()
    pack = Pack(report.pack)
    rng = np.random.default_rng(0)
    paths = pack.paths()
    for row in rng.integers(0, len(pack), 300):
        pixels = np.asarray(Image.open(real_tree_of_all / paths[row]).convert("RGB"))
        height, width = pixels.shape[:2]
        assert np.array_equal(pack.patches[row, :height, :width], pixels)
        assert (pack.patches[row, height:] == 255).all()
        assert (pack.patches[row, :, width:] == 255).all()
