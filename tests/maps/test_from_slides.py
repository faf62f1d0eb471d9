import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.slides.tiffs import write_scn, write_tiff
from tests.stops import StopAfter
from wsi_idc.core.errors import CheckpointError, DataError, StoppedError
from wsi_idc.data.pack import Pack
from wsi_idc.export.geojson import write_geojson
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.geometry.grid import mosaic, shape_of
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource, input_spec
from wsi_idc.maps.map_reader import is_patient_file, map_path, map_paths, read_image, read_map
from wsi_idc.maps.map_writer import MapReport
from wsi_idc.maps.patient_file import read_patient_file
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.report.layers import cam_levels
from wsi_idc.report.patient_page import tissue_pictures
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import ManifestRow, read_manifest
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.slides.tiling import SlideSettings, tile_slide

ALL = SlideSettings(min_tissue=0)
OVERLAP = SlideSettings(min_tissue=0, stride_px=30)
Build = Callable[..., MapReport]


@pytest.fixture
def builder(trained: Checkpoint, tmp_path: Path) -> MapBuilder:
    return MapBuilder(Predictor((trained,)), select_device("cpu"), tmp_path)


@pytest.fixture
def build(builder: MapBuilder) -> Build:
    """Return a function that maps slides into a folder."""

    def build_maps(
        out: Path, *slides: ManifestRow, settings: SlideSettings = ALL, **options: object
    ) -> MapReport:
        return replace(builder, out=out, **options).build(SlideSource(slides, settings))

    return build_maps


@pytest.fixture
def stitched(cohort: Pack) -> np.ndarray:
    """Return the tissue of the first patient, shape (rows * 50, cols * 50, 3)."""
    rows = cohort.rows_of(cohort.patients[0])
    cells = cohort.cells()[rows]
    return mosaic(cohort.patches[rows], cells, shape=shape_of(cells), fill=255)


def write_slide(path: Path, image: np.ndarray, *, mpp: float = 4.0) -> ManifestRow:
    return ManifestRow(write_tiff(path, image, mpp=mpp), path.stem, None)


@pytest.fixture
def row(stitched: np.ndarray, tmp_path: Path) -> ManifestRow:
    """Return a slide of the tissue of the first patient."""
    return write_slide(tmp_path / "s.tif", stitched)


@pytest.mark.parametrize("finer", [1, 4])
def test_slide_of_stitched_patches_has_the_map_of_the_patient(
    builder: MapBuilder, build: Build, cohort: Pack, stitched: np.ndarray, finer: int
):
    patient, tmp_path = cohort.patients[0], builder.out
    replace(builder, out=tmp_path / "pack").build(PackSource(cohort, [patient]))
    image = stitched.repeat(finer, axis=0).repeat(finer, axis=1)
    row = write_slide(tmp_path / "s.tif", image, mpp=4 / finer)
    report = build(tmp_path / "slides", row)
    assert list(report.made) == ["s"]
    expected = read_map(tmp_path / "pack" / f"{patient}.h5")
    found = read_map(tmp_path / "slides" / "s.h5")
    for grid in (PatientMap.probability_grid, PatientMap.cam_mosaic):
        is_patch = np.isfinite(grid(expected))
        np.testing.assert_array_equal(grid(found)[is_patch], grid(expected)[is_patch])
    np.testing.assert_array_equal(read_image(tmp_path / "slides" / "s.h5"), stitched)
    assert (found.source, found.mpp, found.mpp_source) == ("slide", 4.0, "model")
    assert (found.slide.mpp, found.slide.mpp_source) == (pytest.approx(4 / finer), "file")
    assert found.resolution == f"{4 / finer:g} µm/px (file), patches at 4 µm/px"
    assert found.coords[-1].tolist() == (found.row_col[-1][::-1] * 50 * finer).tolist()
    assert found.level0_size == (image.shape[1], image.shape[0])
    assert (found.label == -1).all()
    assert found.slide.thumbnail.shape[:2] == found.slide.tissue.shape


def test_only_the_tissue_of_the_mask_is_mapped(build, row, stitched: np.ndarray, tmp_path: Path):
    mask = np.zeros(stitched.shape[:2], np.uint8)
    mask[50:100, 100:150] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    settings = SlideSettings(mask=tmp_path / "mask.png")
    build(tmp_path, row, settings=settings)
    found = read_map(tmp_path / "s.h5")
    assert found.row_col.tolist() == [[1, 2]]
    assert found.slide.tissue.mean() == pytest.approx(mask.mean() / 255, rel=0.3)
    mask[98:102, 149:152] = 255  # a corner of three more
    Image.fromarray(mask).save(tmp_path / "mask.png")
    build(tmp_path, row, settings=replace(settings, min_tissue=0), overwrite=True)
    assert read_map(tmp_path / "s.h5").row_col.tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_geojson_in_qupaths_frame_marks_the_square_on_the_tissue(build, tmp_path: Path):
    """QuPath shows only the scanned area: there, the tile has exactly the px of the square."""
    area = np.full((1200, 1600, 3), 240, np.uint8)
    area[200:600, 600:1000] = (200, 110, 170)  # one patch of 200 um at x 1600, y 1200 of the slide
    write_scn(tmp_path / "s.scn", area, x=1000, y=1000, glass=(4000, 3000))
    mask = np.zeros(area.shape[:2], np.uint8)
    mask[200:600, 600:1000] = 255
    Image.fromarray(mask[::10, ::10]).save(tmp_path / "mask.png")
    row = ManifestRow(tmp_path / "s.scn", "s", None, tmp_path / "mask.png")
    settings = SlideSettings(min_tissue=0.9, mask_frame="qupath")
    assert not build(tmp_path, row, settings=settings).failed
    found = read_map(tmp_path / "s.h5")
    assert found.coords.tolist() == [[1600, 1200]]
    assert found.slide.bounds == Bounds(1000, 1000, 1600, 1200)
    write_geojson(found, tmp_path / "s.geojson")
    tile = json.loads((tmp_path / "s.geojson").read_text())["features"][0]
    (x, y), _, (right, bottom), *_ = np.array(tile["geometry"]["coordinates"][0], int).tolist()
    is_square = (area == (200, 110, 170)).all(axis=2)
    assert is_square[y:bottom, x:right].all()
    assert is_square.sum() == (right - x) * (bottom - y)


def test_slides_on_a_slow_disk_are_read_from_copies(build, row, tmp_path: Path, monkeypatch):
    build(tmp_path / "a", row)
    opened = []

    def spy(path: Path, **options: object) -> Slide:
        opened.append(options.get("copy"))
        return open_slide(path, **options)

    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "fast"))
    monkeypatch.setattr("wsi_idc.maps.from_slides.open_slide", spy)
    build(tmp_path / "b", row)
    assert [copy and copy.name for copy in opened] == [None, "s.tif"]
    plain, copied = (read_map(tmp_path / folder / "s.h5") for folder in "ab")
    assert plain.provenance["identity"] == copied.provenance["identity"]
    np.testing.assert_array_equal(plain.probability, copied.probability)
    assert list(build(tmp_path / "b", row).kept) == ["s"]
    assert opened[2:] == [None, None]  # a map that is kept needs no copy


def test_cells_of_overlapping_patches_are_their_centers(build, row, stitched, tmp_path: Path):
    build(tmp_path / "a", row)
    build(tmp_path / "b", row, settings=OVERLAP)
    whole, found = read_map(tmp_path / "a" / "s.h5"), read_map(tmp_path / "b" / "s.h5")
    # Every fifth patch of 30 px is every third of 50 px.
    every_third = whole.probability_grid()[::3, ::3]
    np.testing.assert_array_equal(found.probability_grid()[::5, ::5], every_third)
    image = read_image(tmp_path / "b" / "s.h5")
    rows, cols = found.shape
    assert image.shape == (rows * 30, cols * 30, 3)
    # The picture begins 10 px into the slide: the first cell is the middle of the first patch.
    end_y, end_x = (side - 50 for side in stitched.shape[:2])
    np.testing.assert_array_equal(image[: end_y - 10, : end_x - 10], stitched[10:end_y, 10:end_x])
    with h5py.File(tmp_path / "b" / "s.h5") as file:
        assert file["map/x"][:2].tolist() == [100.0, 220.0]  # um: centres of the first two
        assert file["coords"].attrs["overlap"] == 20
        assert file.attrs["stride_px"] == 30
        side = round(6 * 30 / 50)
        assert file["cam/mosaic"].shape == (rows * side, cols * side)
    (thumbnail, *_), _ = tissue_pictures(found, None)
    # The grid begins 10 px of 4 um into the slide, so the slide 0.04 mm before the grid.
    assert (thumbnail.x, thumbnail.y) == pytest.approx((-0.04, -0.04))
    assert found.cell_cams().shape[1:] == (side, side)
    assert cam_levels(found).shape == (rows * side, cols * side)


def test_unusable_slides_fail_and_other_slides_are_mapped(build, stitched, tmp_path: Path):
    good = write_slide(tmp_path / "good.tif", stitched)
    Image.fromarray(stitched).save(tmp_path / "plain.png")
    whole = (tmp_path / "good.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.svs").touch()
    Image.fromarray(stitched).save(tmp_path / "fake.svs", format="JPEG")
    names = ["plain.png", "cut.tif", "empty.svs", "fake.svs", "none.svs"]
    rows = [ManifestRow(tmp_path / name, name.split(".")[0], None) for name in names]
    report = build(tmp_path / "maps", *rows, good)
    assert list(report.made) == ["good"]
    assert list(report.failed) == ["plain", "cut", "empty", "fake", "none"]
    assert "give --mpp" in report.failed["plain"]
    assert all("\n" not in reason for reason in report.failed.values())
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["good.h5"]
    again = build(tmp_path / "maps", rows[0], settings=replace(ALL, mpp=4.0))
    assert read_map(again.made["plain"]).slide.mpp_source == "given"


def test_slide_below_a_patch_is_refused_before_it_is_read(
    build, stitched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Slide, "read", lambda *_, **__: pytest.fail("reads the slide"))
    rows = [write_slide(tmp_path / "a.tif", stitched[:49, :49])]
    rows.append(write_slide(tmp_path / "b.tif", stitched[:100, :100], mpp=0.001))
    failed = build(tmp_path / "maps", *rows).failed
    assert "196 x 196 um at 4 um/px (file) are less than a patch of 200 um" in failed["a"]
    assert "0.1 x 0.1 um at 0.001 um/px (file) are less than a patch" in failed["b"]
    monkeypatch.undo()
    strip = np.full((50, 20, 3), (200, 110, 170), np.uint8)
    assert build(tmp_path / "maps", write_slide(tmp_path / "c.tif", strip)).made


def test_map_is_kept_until_slide_or_settings_change(build, row, stitched, tmp_path: Path):
    out = tmp_path / "maps"
    assert build(out, row).made
    with h5py.File(out / "s.h5") as file:
        key = json.loads(file.attrs["provenance"])["identity"]
    assert (key["min_tissue"], key["stride_px"], key["mask"]) == (0, 50, None)
    assert build(out, row).kept
    assert build(out, row, settings=SlideSettings(min_tissue=0.2)).failed
    assert build(out, row).kept
    stitched[:50, :50] = 0
    write_slide(tmp_path / "s.tif", stitched)
    assert build(out, row).failed
    assert build(out, row, overwrite=True).made


def test_stop_keeps_complete_maps(build, stitched: np.ndarray, tmp_path: Path):
    rows = [write_slide(tmp_path / f"{name}.tif", stitched) for name in "abc"]
    out = tmp_path / "maps"
    with pytest.raises(StoppedError, match=r"Stopped by SIGTERM with [12] of 3 maps made"):
        build(out, *rows, batch_size=16, stop=StopAfter(12))
    made = {path.name for path in out.iterdir()}
    assert made
    assert not any(name.startswith(".") for name in made)
    report = build(out, *rows)
    assert len(report.kept) == len(made)
    assert len(report.made) + len(report.kept) == 3


def test_the_next_slide_is_prepared_while_a_slide_is_computed(
    build, stitched: np.ndarray, tmp_path: Path, monkeypatch
):
    is_prepared, waited = threading.Event(), []

    def tile(slide: Slide, *args, **options):
        tiled = tile_slide(slide, *args, **options)
        if slide.path.stem == "b":
            is_prepared.set()
        return tiled

    forward = PatchClassifier.forward

    def wait_and_forward(classifier: PatchClassifier, patches):
        waited.append(is_prepared.wait(30))
        return forward(classifier, patches)

    monkeypatch.setattr("wsi_idc.maps.from_slides.tile_slide", tile)
    monkeypatch.setattr(PatchClassifier, "forward", wait_and_forward)
    rows = [write_slide(tmp_path / f"{name}.tif", stitched) for name in "ab"]
    assert list(build(tmp_path / "maps", *rows).made) == ["a", "b"]
    assert waited
    assert all(waited)


def test_network_is_built_once_and_only_if_needed(build, stitched, tmp_path: Path, monkeypatch):
    built, checkpoint_build = [], Checkpoint.build

    def counting(checkpoint: Checkpoint) -> PatchClassifier:
        built.append(checkpoint)
        return checkpoint_build(checkpoint)

    monkeypatch.setattr(Checkpoint, "build", counting)
    rows = [write_slide(tmp_path / f"{name}.tif", stitched[:100]) for name in "ab"]
    for _ in range(2):
        build(tmp_path / "maps", *rows)
        assert len(built) == 1


def test_training_patient_is_logged(build, row, trained: Checkpoint, tmp_path: Path, caplog):
    seen = sorted(trained.patients("train"))[0]
    with caplog.at_level("INFO", logger="wsi_idc"):
        build(tmp_path, row)
        assert "the model was trained on none of these patients" in caplog.text
        build(tmp_path, row, replace(row, patient=seen))
    message = f"trained on 1 of these patients (the first is {seen}): maps of training patients"
    assert message in caplog.text


def test_other_slide_of_the_same_name_does_not_replace_the_map(build, stitched, tmp_path: Path):
    rows = []
    for folder, image in (("a", stitched[:100]), ("b", stitched[50:150])):
        (tmp_path / folder).mkdir()
        rows.append(write_slide(tmp_path / folder / "s.tif", image))
    first, second = rows
    assert build(tmp_path, first).made
    reason = f"s.h5 was made with another data ({first.slide}, not {second.slide}); --overwrite"
    assert reason in build(tmp_path, second).failed["s"]
    write_slide(first.slide, stitched[:80])  # the same file, changed
    assert "s.h5 was made with another data; --overwrite" in build(tmp_path, first).failed["s"]


def slides_of_a_patient(folder: Path, stitched: np.ndarray) -> list[ManifestRow]:
    """Write two slides of patient P and one of patient Q; return the rows of a manifest."""
    for name, pixels in (("a", stitched[:100]), ("b", stitched[50:150]), ("c", stitched[:50])):
        write_slide(folder / f"{name}.tif", pixels)
    (folder / "slides.csv").write_text("slide,patient\na.tif,P\nb.tif,P\nc.tif,Q\n")
    return read_manifest(folder / "slides.csv")


def test_several_slides_of_a_patient_have_a_map_each(build, stitched, tmp_path: Path):
    rows, out = slides_of_a_patient(tmp_path, stitched), tmp_path / "maps"
    report = build(out, *rows)
    assert report.made == {name: map_path(out, name) for name in ("P/a", "P/b", "Q")}
    assert map_paths(out) == list(report.made.values())
    found = read_map(out / "P" / "b.h5")
    assert (found.patient, found.slide_name, found.map_name) == ("P", "b", "P/b")
    alone = build(tmp_path / "alone", replace(rows[1], is_only=True))
    expected = read_map(alone.made["P"])
    np.testing.assert_array_equal(found.probability, expected.probability)
    row, table = read_patient_file(out / "P.h5")
    assert row["patches"] == len(read_map(out / "P/a.h5").label) + len(found.label)
    assert table["slide"].tolist() == ["a", "b"]
    data = (out / "P.h5").read_bytes()
    assert list(build(out, *rows).kept) == ["P/a", "P/b", "Q"]
    assert (out / "P.h5").read_bytes() == data
    shutil.rmtree(out / "P")  # the patient file has no maps now
    assert map_paths(out) == [out / "P.h5", out / "Q.h5"]
    assert list(build(out, *rows).made) == ["P/a", "P/b"]
    (out / "P.h5").unlink()  # as after a kill
    build(out, *rows)
    assert (out / "P.h5").read_bytes() == data


def test_shards_make_the_same_patient_file(builder, build, stitched, tmp_path: Path):
    rows, out = slides_of_a_patient(tmp_path, stitched), tmp_path / "maps"
    build(out, *rows)
    shards = [SlideSource(rows, ALL).shard(number, 3) for number in (1, 2, 3)]
    assert sorted(shard.names for shard in shards) == [["P/a"], ["P/b"], ["Q"]]
    for shard in shards:
        replace(builder, out=tmp_path / "shards").build(shard)
    read = {name: read_patient_file(tmp_path / name / "P.h5") for name in ("maps", "shards")}
    assert read["maps"][0] == pytest.approx(read["shards"][0], nan_ok=True)
    assert (out / "P.h5").read_bytes() == (tmp_path / "shards" / "P.h5").read_bytes()


def test_a_map_and_a_file_of_several_slides_replace_each_other_only_with_overwrite(
    builder, build, stitched, tmp_path: Path
):
    rows, out = slides_of_a_patient(tmp_path, stitched), tmp_path / "maps"
    alone = replace(rows[0], is_only=True)
    build(out, alone)
    data = (out / "P.h5").read_bytes()
    report = build(out, *rows)
    reason = f"{out / 'P.h5'} does not link several slides; --overwrite replaces it"
    assert all(reason in report.failed[name] for name in ("P/a", "P/b"))
    planned = SlideSource(rows, ALL).plan(replace(builder, out=out))
    assert [plan.map_name for plan in planned if reason in plan.state] == ["P/a", "P/b"]
    assert list(report.made) == ["Q"]
    assert (out / "P.h5").read_bytes() == data
    assert list(build(out, *rows, overwrite=True).made) == ["P/a", "P/b", "Q"]
    assert is_patient_file(out / "P.h5")
    assert (
        "P.h5 links several slides, not one; --overwrite replaces it"
        in build(out, alone).failed["P"]
    )
    assert list(build(out, alone, overwrite=True).made) == ["P"]
    assert map_paths(out) == [out / "P.h5", out / "Q.h5"]


@pytest.mark.parametrize(("spare", "has_image"), [(0, True), (-1, False)])
def test_image_beyond_the_limit_is_left_out(
    builder: MapBuilder, stitched: np.ndarray, monkeypatch, caplog, spare: int, has_image: bool
):
    tmp_path = builder.out
    needed = 4 * 30**2 * 3  # 2 x 2 cells of 30 px
    monkeypatch.setattr("wsi_idc.maps.from_slides.MAX_IMAGE_BYTES", needed + spare)
    source = SlideSource([write_slide(tmp_path / "s.tif", stitched[:80, :80])], OVERLAP)
    (planned,) = source.plan(builder)
    builder.build(source)
    assert (read_image(tmp_path / "s.h5") is not None) is has_image
    assert caplog.text.count("so the map has no picture") == (0 if has_image else 2)
    # 64 bytes a patch and 32 a cell, CAMs of 6 x 6 twice; then the picture.
    without = 4 * (64 + 32 + 2 * 4 * 36)
    assert planned.disk_mb * 1e6 == pytest.approx(without + has_image * 4 * 30**2 * 3)


def test_ensemble_of_different_patch_sizes_is_refused(trained: Checkpoint):
    other = replace(trained, input=replace(trained.input, mpp=2.0), fingerprint="other")
    with pytest.raises(CheckpointError, match="take patches of different sizes: 50 px at 2 um/px"):
        input_spec(Predictor((trained, other)))


def test_patient_id_cannot_leave_the_folder(build, tmp_path: Path):
    with pytest.raises(DataError, match="cannot be a patient id"):
        build(tmp_path / "maps", ManifestRow(tmp_path / "s.tif", "../evil", None))


@pytest.mark.parametrize(("make", "reason"), [(os.mkfifo, "not a regular"), (None, "no such file")])
def test_mask_that_is_not_a_file_fails(build, row, tmp_path: Path, make, reason: str):
    if make:
        make(tmp_path / "mask.png")
    settings = SlideSettings(mask=tmp_path / "mask.png")
    report = build(tmp_path / "maps", row, settings=settings)
    assert reason in report.failed["s"]
