import csv
import json
import os
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
from wsi_idc.data.index import Problem
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare
from wsi_idc.errors import BusyError, DataError, WsiIdcError
from wsi_idc.files import scratch

INTERRUPTED = """
import sys
from pathlib import Path
from wsi_idc.data.prepare import prepare
print("ready", flush=True)
prepare(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=2)
"""


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
    assert report.flagged == (Problem(path, "edge patch", "37x50 px, padded white"),)
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
    assert report.flagged == (Problem(path, "small inside the slide", "50x37 px, padded white"),)


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


def test_nested_copy_changes_nothing(tree, tmp_path):
    before = content(prepare(tree, tmp_path / "a.h5").pack)
    shutil.copytree(tree, tree / "IDC_regular_ps50_idx5")
    assert content(prepare(tree, tmp_path / "b.h5").pack) == before


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
    with scratch(out.with_name("a.h5.pixels")), pytest.raises(BusyError):
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
        ({"mpp": 0.0}, "0.0 microns per pixel make no sense"),
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


def test_ctrl_c_leaves_nothing_and_no_thread(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out" / "a.h5"
    source = add_patch(tree, "1", 0, 0, 0)
    for row in range(60):
        for col in range(200):
            path = tree / "1" / "0" / file_name("1", row, col, 0)
            if path != source:
                os.link(source, path)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tree), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        raw = out.with_name(".a.h5.pixels.partial")
        while not (raw.exists() and raw.stat().st_size):
            assert child.poll() is None
            time.sleep(0.001)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = child.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert "KeyboardInterrupt" in errors
    assert names(out.parent) == []


@pytest.mark.slow
@pytest.mark.real
def test_real_patches(tmp_path):
    unpack = Path(__file__).resolve().parents[3] / "shared" / "idc" / "unpack.sh"
    if not unpack.exists():
        pytest.skip(f"the real patches are not at {unpack.parent}")
    tree = tmp_path / "tree"
    subprocess.run([str(unpack), str(tree)], check=True)
    report = prepare(tree, tmp_path / "a.h5")
    assert (report.num_patches, report.num_patients, report.num_edge) == (15_627, 233, 156)
    assert report.rejected == ()
    pack = Pack(report.pack)
    rng = np.random.default_rng(0)
    paths = pack.paths()
    for at in rng.integers(0, len(pack), 300):
        pixels = np.asarray(Image.open(tree / paths[at]).convert("RGB"))
        height, width = pixels.shape[:2]
        assert np.array_equal(pack.patches[at, :height, :width], pixels)
        assert (pack.patches[at, height:] == 255).all()
        assert (pack.patches[at, :, width:] == 255).all()
