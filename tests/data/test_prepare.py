import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests import packs
from tests.packs import PATIENTS, file_name, names, pack_content, pixels_of, read_csv, save_png
from wsi_idc.core.errors import BusyError, DataError, WsiIdcError
from wsi_idc.core.files import temporary_path
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_store import FileIssue
from wsi_idc.data.prepare import prepare

PATH = f"9/0/{file_name('9', 0, 3, 0)}"


def test_report_and_files(tree, tmp_path):
    out = tmp_path / "new" / "idc.h5"
    report = prepare(tree, out)
    assert names(out.parent) == ["flagged.csv", "idc.h5", "rejected.csv"]
    assert report.pack == out
    assert (report.num_patches, report.num_patients) == (7, 3)
    assert (report.num_idc, report.num_non_idc, report.num_edge) == (3, 4, 0)
    assert (report.rejected, report.flagged, report.num_other_files) == ((), (), 0)
    assert read_csv(out.with_name("rejected.csv")) == []
    assert (report.info.mpp, report.info.mpp_source) == (4.0, "assumed")
    info = prepare(tree, tmp_path / "a.h5", mpp=3.9).info
    assert (info.mpp, info.mpp_source) == (3.9, "given")
    with h5py.File(out) as file:
        record = json.loads(file.attrs["provenance"])
    assert (record["source"], record["program"]) == (str(tree), "wsi-idc")


def test_too_many_patches_are_an_error_before_they_are_decoded(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.data.pack.MAX_PATCHES", 6)
    monkeypatch.delattr("wsi_idc.data.prepare.decode_tree")
    with pytest.raises(DataError, match="7 patches are more than 6; make several packs"):
        prepare(tree, tmp_path / "a.h5")


def test_small_patches_are_padded_white_and_flagged(tree, tmp_path):
    pixels = pixels_of("9", 0, 3, width=37)
    save_png(tree / PATH, pixels)
    report = prepare(tree, tmp_path / "a.h5")
    assert report.num_edge == 1
    assert report.flagged == (FileIssue(PATH, "edge patch", "37x50 px, padded white"),)
    pack = Pack(report.pack)
    assert pack.index.loc[5, ["height", "width"]].tolist() == [50, 37]
    assert np.array_equal(pack.patches[5, :, :37], pixels)
    assert (pack.patches[5, :, 37:] == 255).all()
    assert read_csv(tmp_path / "flagged.csv")[0]["reason"] == "edge patch"
    save_png(tree / PATH, pixels_of("9", 0, 3, height=37))  # patient 9 has row 4
    report = prepare(tree, tmp_path / "a.h5")
    assert report.num_edge == 1
    assert report.flagged == (FileIssue(PATH, "small inside the slide", "50x37 px, padded white"),)


def test_every_bad_file_is_named_and_the_good_ones_are_packed(tree, tmp_path):
    before = pack_content(prepare(tree, tmp_path / "good.h5").pack)
    expected = packs.add_bad_files(tree)
    report = prepare(tree, tmp_path / "a.h5")
    assert {p.path: p.reason for p in report.rejected} == {p: r for p, (r, _) in expected.items()}
    for problem in report.rejected:
        assert problem.detail.startswith(expected[problem.path][1])
    listed = read_csv(tmp_path / "rejected.csv")
    assert [row["path"] for row in listed] == sorted(expected)
    assert pack_content(report.pack) == before


@pytest.mark.parametrize("name", ["rejected.csv", "flagged.csv"])
@pytest.mark.parametrize("mine", ["path,reason,details\na,b,c\n", "", None])
def test_a_list_of_another_program_is_not_replaced(tree, tmp_path, name, mine, monkeypatch):
    path, out = tmp_path / name, tmp_path / "idc.h5"
    path.mkdir() if mine is None else path.write_text(mine)
    monkeypatch.setattr("wsi_idc.data.prepare.decode_tree", None)  # refused before decoding
    with pytest.raises(DataError, match=f"{name} was not written by prepare and would be replaced"):
        prepare(tree, out)
    assert mine is None or path.read_text() == mine
    assert not out.exists()


def test_lists_of_another_pack_are_replaced_with_a_warning(tree, tmp_path, caplog):
    for _ in range(2):
        prepare(tree, tmp_path / "a.h5")
    (tmp_path / "rejected.csv").write_bytes(b"path,reason,detail\r\n")
    assert caplog.messages == []
    prepare(tree, tmp_path / "b.h5")
    line = "rejected.csv and flagged.csv beside a.h5 will describe the new pack"
    assert caplog.messages == [line]
    assert read_csv(tmp_path / "rejected.csv") == []


@pytest.mark.parametrize("as_zip", [False, True])
def test_an_undamaged_copy_replaces_a_damaged_patch(tree, tmp_path, as_zip):
    good = prepare(tree, tmp_path / "a.h5").pack
    expected, paths = pack_content(good), Pack(good).paths()
    for folder in ("b", "c"):
        shutil.copytree(tree, tmp_path / folder)
        (tmp_path / folder).rename(tree / f"copy_{folder}")
    for damaged in (PATH, f"copy_b/{PATH}"):  # as large as they were
        (tree / damaged).write_bytes(bytes((tree / damaged).stat().st_size))
    root = Path(shutil.make_archive(str(tmp_path / "x"), "zip", tree)) if as_zip else tree
    report = prepare(root, tmp_path / "b.h5")
    copy = f"copy_c/{PATH}"
    detail = f"not a PNG file; its copy {copy} is packed"
    assert report.rejected == (FileIssue(PATH, "unreadable", detail),)
    assert report.num_patches == 7
    assert Pack(report.pack).paths() == [copy if name == PATH else name for name in paths]
    assert pack_content(report.pack) == expected | {"path": Pack(report.pack).paths()}


def test_a_damaged_patch_without_an_undamaged_copy_is_left_out(tree, tmp_path):
    size = (tree / PATH).stat().st_size
    for damaged in (tree / PATH, tree / "copy" / PATH):
        damaged.parent.mkdir(parents=True, exist_ok=True)
        damaged.write_bytes(bytes(size))
    report = prepare(tree, tmp_path / "a.h5")
    assert report.rejected == (FileIssue(PATH, "unreadable", "not a PNG file"),)
    assert report.num_patches == 6


def test_fingerprint_depends_on_content_and_not_on_the_folder(tree, tmp_path):
    def fingerprint(root: Path) -> str:
        return prepare(root, tmp_path / "a.h5").info.source_fingerprint

    before = fingerprint(tree)
    assert len(before) == 64
    moved = shutil.copytree(tree, tmp_path / "up" / "IDC_regular_ps50_idx5")
    assert fingerprint(moved) == fingerprint(moved.parent) == before
    path = moved / PATH
    pixels = pixels_of("9", 0, 3)
    pixels[0, 0, 0] ^= 1
    save_png(path, pixels)
    changed = fingerprint(moved)
    path.write_bytes(path.read_bytes()[:-5] + b"\0" + path.read_bytes()[-4:])
    assert len({before, changed, fingerprint(moved)}) == 3


def test_leftovers_of_a_killed_run_are_written_over_also_inside_the_tree(tree, tmp_path):
    outside = pack_content(prepare(tree, tmp_path / "a.h5").pack)
    for name in (".a.h5.partial", ".a.h5.pixels.partial"):
        (tree / name).write_bytes(bytes(10**6))
    for num_other_files in (2, 3):
        report = prepare(tree, tree / "a.h5")
        assert report.num_other_files == num_other_files
        assert names(tree) == [*PATIENTS, "a.h5", "flagged.csv", "rejected.csv"]
        assert report.pack.stat().st_size < 10**6
        assert pack_content(report.pack) == outside


def test_busy(tree, tmp_path):
    out = tmp_path / "a.h5"
    with temporary_path(out.with_name("a.h5.pixels")), pytest.raises(BusyError):
        prepare(tree, out)
    assert not out.exists()


def test_a_failed_run_keeps_the_old_pack(tree, tmp_path):
    out = tmp_path / "out" / "a.h5"
    prepare(tree, out)
    before = out.read_bytes()
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no patch could be read; first file: .+: empty file"):
        prepare(tree, out)
    assert out.read_bytes() == before
    assert names(out.parent) == ["a.h5", "flagged.csv", "rejected.csv"]


def write_notes(out: Path) -> Path:
    out.write_text("mine")
    return out


@pytest.mark.parametrize(
    ("make_out", "options", "message"),
    [
        (Path, {"patch_px": 0}, "a patch of 0 px cannot be packed; choose 1 to 255 px"),
        (Path, {"patch_px": 256}, "a patch of 256 px cannot be packed"),
        (Path, {"mpp": 0.0}, "0.0 microns per pixel are impossible; give 0.001 to 100"),
        (Path, {"mpp": float("nan")}, "nan microns per pixel are impossible"),
        (lambda out: out.parent, {}, "is a folder; give a file as --out"),
        (write_notes, {}, "a.h5 exists and is not a pack"),
        (lambda out: write_notes(out) / "b.h5", {}, "choose another folder"),
    ],
)
def test_wrong_arguments(tree, tmp_path, make_out, options, message):
    out = make_out(tmp_path / "a.h5")
    with pytest.raises(WsiIdcError, match=message):
        prepare(tree, out, **options)
    assert not (tmp_path / "a.h5").exists() or (tmp_path / "a.h5").read_text() == "mine"


def test_a_few_bad_files_are_logged_and_the_rest_is_in_the_list(tree, tmp_path, caplog):
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
