"""Packs cut from slides: patches, labels, slides set aside, and resuming."""

import csv
import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.packs import make_tree, names
from tests.slides.tiffs import write_tiff
from tests.small_slides import CELL_PX, box, make_slides, tissue_of, write_outlines
from wsi_idc.core.errors import DataError, DiskFullError
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare
from wsi_idc.data.slide_cutter import LabelSettings, SlideCutter
from wsi_idc.data.slide_pack import SlidePackReport, prepare_slides
from wsi_idc.slides.annotations import class_table
from wsi_idc.slides.manifest import read_manifest
from wsi_idc.slides.patches import SlidePatches
from wsi_idc.slides.tiling import SlideSettings

SKIP = LabelSettings(unannotated="skip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_slides(tmp_path)


def pack_slides(
    folder: Path, out: str = "out/a.h5", labels: LabelSettings | None = None
) -> SlidePackReport:
    labels = labels or LabelSettings()
    return prepare_slides(
        read_manifest(folder / "slides" / "slides.csv"),
        folder / out,
        settings=SlideSettings(),
        labels=replace(labels, folder=folder / "outlines"),
        patch_px=50,
        mpp=4.0,
    )


def rows_of(pack: Pack) -> list[tuple[object, ...]]:
    """Return patient, slide, row, column and label of each patch."""
    slides = [pack.slides[code].name for code in pack.index["slide"]]
    cells = pack.cells().tolist()
    columns = (pack.patient_of, slides, cells, pack.index["label"])
    return [
        (patient, slide, *cell, label) for patient, slide, cell, label in zip(*columns, strict=True)
    ]


def test_patches_and_labels_of_several_slides(folder):
    report = pack_slides(folder)
    pack = Pack(report.pack)
    # 0.4 of a patch under Stroma is less than half; 0.5 of a patch under Tumor is enough.
    assert rows_of(pack) == [
        ("P", "one", 0, 0, 1),
        ("P", "one", 0, 1, -1),
        ("P", "one", 1, 2, -1),
        ("P", "two", 0, 0, 0),
        ("Q", "three", 0, 0, 1),
        ("Q", "three", 0, 1, 1),
    ]
    assert pack.index["x"].tolist() == [0, 200, 400, 0, 0, 200]
    tissue = tissue_of({(1, 2): 3}, rows=2, cols=3)[CELL_PX:, 2 * CELL_PX :]
    np.testing.assert_array_equal(pack.patches[2], tissue[::4, ::4])
    assert (pack.info.mpp, pack.info.mpp_source, report.unannotated) == (4, "resampled", "unknown")
    assert [slide.width for slide in pack.slides] == [600, 400, 400]
    assert pack.overview(2).tissue.mean() > 0.9
    assert report.set_aside == {}
    assert names(report.pack.parent) == ["a.h5", "a_slides", "a_slides.csv"]


def test_the_table_has_counts_and_areas(folder):
    report = pack_slides(folder)
    with report.table.open(newline="") as file:
        one, two, three = csv.DictReader(file)
    assert (one["patient"], one["slide"], one["patches"], one["unknown"]) == ("P", "one", "3", "2")
    # A patch has 0.04 mm2.
    areas = ("idc_mm2", "non_idc_mm2", "ignored_mm2", "unannotated_mm2")
    assert [float(one[name]) for name in areas] == pytest.approx([0.04, 0.016, 0, 0.064])
    assert [float(two[name]) for name in areas] == pytest.approx([0, 0.04, 0.04, 0])
    assert two["left_out"] == "1"
    assert [float(three[name]) for name in areas] == pytest.approx([0.06, 0, 0, 0.02])


def test_tissue_without_outline_has_the_label_that_the_user_chooses(folder):
    labels = Pack(pack_slides(folder, labels=LabelSettings(unannotated="non-IDC")).pack)
    assert labels.index["label"].tolist() == [1, 0, 0, 0, 1, 1]
    skipped = Pack(pack_slides(folder, labels=SKIP).pack)
    assert [row[1:] for row in rows_of(skipped)] == [
        ("one", 0, 0, 1),
        ("two", 0, 0, 0),
        ("three", 0, 0, 1),
        ("three", 0, 1, 1),
    ]


def test_only_tumor_is_outlined(folder):
    for name in ("one.geojson", "two.tif.geojson"):
        write_outlines(folder / "outlines" / name, ("Tumor", box(0, 0, 1, 1)))
    with pytest.raises(DataError, match="no outline of non-IDC; give --unannotated"):
        pack_slides(folder)
    pack = Pack(pack_slides(folder, labels=LabelSettings(unannotated="non-IDC")).pack)
    assert pack.index["label"].tolist() == [1, 0, 0, 1, 0, 1, 1]


def test_a_slide_that_cannot_be_used_is_set_aside(folder):
    (folder / "slides" / "two.tif").write_bytes(b"II*\0 no slide")
    write_outlines(folder / "outlines" / "three.geojson", ("Vessel", box(0, 0, 1, 1)))
    report = pack_slides(folder)
    assert [row[1] for row in rows_of(Pack(report.pack))] == ["one"] * 3
    reasons = {Path(path).name: reason for path, reason in report.set_aside.items()}
    assert set(reasons) == {"two.tif", "three.tif"}
    assert "no target for the class 'Vessel'; found Vessel (1)" in reasons["three.tif"]
    with report.table.open(newline="") as file:
        assert [bool(row["reason"]) for row in csv.DictReader(file)] == [False, True, True]


def test_a_slide_without_annotations_needs_a_choice(folder):
    (folder / "outlines" / "three.geojson").unlink()
    report = pack_slides(folder)
    assert "has no annotations; give a file" in next(iter(report.set_aside.values()))
    pack = Pack(pack_slides(folder, labels=LabelSettings(unannotated="non-IDC")).pack)
    assert pack.index["label"].tolist()[-2:] == [0, 0]


def test_no_slide_is_left(folder):
    labels = LabelSettings(classes=class_table("Vessel=IDC, Nerve=non-IDC"))
    with pytest.raises(DataError, match=r"none of 3 .*the first error: .*no target"):
        pack_slides(folder, labels=labels)
    assert names(folder / "out") == []


def test_a_stopped_call_keeps_the_complete_slides(folder, monkeypatch, caplog):
    pack_slides(folder, "expected/a.h5")
    cut, batches = SlideCutter.cut, SlidePatches.batches
    num_cut, lock, num_read = 0, threading.Lock(), []

    def note(self, batch_size):
        num_read.append(len(self))
        return batches(self, batch_size)

    def stop_at_the_last(self, row, **options):
        nonlocal num_cut
        with lock:
            num_cut += 1
            is_last = num_cut == 3
        if is_last:
            raise KeyboardInterrupt
        return cut(self, row, **options)

    monkeypatch.setattr(SlideCutter, "cut", stop_at_the_last)
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        pack_slides(folder)
    assert "stopped with 2 complete slides; the same command keeps them" in caplog.text
    assert not (folder / "out" / "a.h5").exists()
    kept = [name for name in names(folder / "out" / ".a.h5.slides.partial") if name != "lock"]
    assert len(kept) == 4  # pixels and details of two slides
    monkeypatch.setattr(SlideCutter, "cut", cut)
    monkeypatch.setattr(SlidePatches, "batches", note)
    report = pack_slides(folder)
    assert names(folder / "out") == ["a.h5", "a_slides", "a_slides.csv"]
    assert num_read == [2]  # only the patches of the last slide
    assert report.num_kept == 2
    found, wanted = Pack(report.pack), Pack(folder / "expected" / "a.h5")
    assert found.info == wanted.info
    assert found.slides == wanted.slides
    np.testing.assert_array_equal(found.patches, wanted.patches)


def test_a_full_disk_is_no_reason_to_set_a_slide_aside(folder, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise DiskFullError("disk full")

    monkeypatch.setattr(SlideCutter, "_write", fail)
    with pytest.raises(DiskFullError):
        pack_slides(folder)


def test_patches_at_the_edge_are_padded_with_white(folder):
    image = tissue_of({(0, 0): 6, (0, 1): 7}, rows=1, cols=2)[:120, :300]
    write_tiff(folder / "slides" / "three.tif", image, mpp=1.0)
    pack = Pack(pack_slides(folder).pack)
    assert pack.index[["height", "width"]].to_numpy()[-2:].tolist() == [[30, 50], [30, 25]]
    assert (pack.patches[-1][30:] == 255).all()
    assert (pack.patches[-1][:, 25:] == 255).all()


def test_the_picture_shows_labels_and_outlines(folder):
    report = pack_slides(folder)
    assert names(report.pictures) == ["P", "Q"]
    assert names(report.pictures / "P") == ["one.png", "two.png"]
    with Image.open(report.pictures / "P" / "one.png") as image:
        assert image.size == (620, 440)
        pixels = np.asarray(image).astype(int)
    red, _, blue = pixels[100, 100]  # a patch of IDC
    assert red > blue + 40
    assert pixels[0, 100].tolist() == [194, 65, 12]  # the outline of IDC


def test_corners_at_half_a_px_are_on_the_grid(folder):
    # A patch has 62.5 px; the position of column 5 depends on the order of multiplications.
    manifest = folder / "slides" / "slides.csv"
    manifest.write_text("slide,mpp\nthree.tif,0.44\n")
    report = prepare_slides(
        read_manifest(manifest),
        folder / "a.h5",
        settings=SlideSettings(),
        labels=LabelSettings(unannotated="non-IDC"),
        patch_px=50,
        mpp=0.55,
    )
    pack = Pack(report.pack)
    assert set(pack.cells()[:, 1]) == set(range(7))
    assert sorted(set(pack.index["x"])) == [0, 63, 125, 188, 250, 312, 375]


def test_a_slide_without_an_annotation_file_is_named(folder, caplog):
    (folder / "outlines" / "three.geojson").rename(folder / "outlines" / "thre.geojson")
    pack_slides(folder, labels=LabelSettings(unannotated="non-IDC"))
    expected = "1 of 3 slides have no annotation file, so all their tissue is non-IDC: three"
    assert expected in caplog.messages


def test_a_wrong_option_keeps_the_slides_of_a_stopped_call(folder, monkeypatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("wsi_idc.data.slide_pack._write", stop)
        pack_slides(folder)
    cache = folder / "out" / ".a.h5.slides.partial"
    kept = names(cache)
    assert len(kept) == 7  # pixels and details of three slides, and the lock
    with pytest.raises(DataError, match="no target"):
        pack_slides(folder, labels=LabelSettings(classes=class_table("Vessel=IDC")))
    assert names(cache) == kept
    pack_slides(folder)
    assert not cache.exists()


def test_another_mask_with_the_same_patches_is_in_the_pack(folder, monkeypatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    manifest, mask = folder / "slides" / "slides.csv", folder / "slides" / "mask.png"
    manifest.write_text("slide,mask\nthree.tif,mask.png\n")
    for width in (40, 36):
        image = np.zeros((20, 40), np.uint8)
        image[:, :width] = 255
        Image.fromarray(image).save(mask)
        with monkeypatch.context() as patch:
            if width == 40:
                patch.setattr("wsi_idc.data.slide_pack._write", stop)
                with pytest.raises(KeyboardInterrupt):
                    pack_slides(folder, labels=SKIP)
            else:
                pack_slides(folder, labels=SKIP)
    tissue = Pack(folder / "out" / "a.h5").overview(0).tissue
    assert tissue.mean() == pytest.approx(0.9, abs=0.02)


def test_a_manifest_with_the_name_of_the_table_is_not_replaced(folder):
    manifest = folder / "slides" / "slides.csv"
    content = manifest.read_bytes()
    manifest.rename(folder / "a_slides.csv")
    with pytest.raises(DataError, match="would be lost; give another --out"):
        prepare_slides(
            read_manifest(folder / "a_slides.csv"),
            folder / "a.h5",
            settings=SlideSettings(),
            labels=SKIP,
            patch_px=50,
            mpp=4.0,
        )
    assert (folder / "a_slides.csv").read_bytes() == content


def test_slides_of_the_same_name_do_not_share_an_annotation_file(folder):
    (folder / "slides" / "other").mkdir()
    (folder / "slides" / "two.tif").rename(folder / "slides" / "other" / "one.tif")
    lines = ["slide,patient", "one.tif,P", "other/one.tif,Q", "three.tif,R"]
    (folder / "slides" / "slides.csv").write_text("\n".join(lines) + "\n")
    report = pack_slides(folder, labels=SKIP)
    assert Pack(report.pack).patients == ["R"]
    assert all("is also the file of another slide" in why for why in report.set_aside.values())
    assert len(report.set_aside) == 2


def test_a_pack_of_a_tree_is_not_replaced(folder, pack):
    rows = read_manifest(folder / "slides" / "slides.csv")
    options = {"settings": SlideSettings(), "labels": SKIP, "patch_px": 50, "mpp": 4.0}
    before = pack.path.read_bytes()
    with pytest.raises(DataError, match="is a pack of a patch tree; give another --out"):
        prepare_slides(rows, pack.path, **options)
    assert pack.path.read_bytes() == before
    report = pack_slides(folder)
    with pytest.raises(DataError, match="is a pack of slides; give another --out"):
        prepare(make_tree(folder / "tree"), report.pack)
