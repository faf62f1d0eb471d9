import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.stops import StopAfter
from wsi_idc.core.errors import CheckpointError, DataError, StoppedError
from wsi_idc.data.pack import Pack
from wsi_idc.geometry.grid import mosaic, shape_of
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSettings, SlideSource, input_spec
from wsi_idc.maps.map_reader import read_image, read_map
from wsi_idc.maps.map_writer import MapReport
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.report.layers import cam_levels
from wsi_idc.report.patient_page import tissue_pictures
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import ManifestRow

ALL = SlideSettings(min_tissue=0)


def make_builder(trained: Checkpoint, out: Path, **options: object) -> MapBuilder:
    return MapBuilder(Predictor((trained,)), select_device("cpu"), out, **options)


def build(
    trained: Checkpoint,
    out: Path,
    slides: Sequence[ManifestRow],
    settings: SlideSettings = ALL,
    **options: object,
) -> MapReport:
    return make_builder(trained, out, **options).build(SlideSource(slides, settings))


@pytest.fixture
def stitched(cohort: Pack) -> np.ndarray:
    """Return the tissue of the first patient, shape (rows * 50, cols * 50, 3)."""
    rows = cohort.rows_of(cohort.patients[0])
    cells = cohort.cells()[rows]
    return mosaic(cohort.patches[rows], cells, shape=shape_of(cells), fill=255)


def write_slide(path: Path, image: np.ndarray, *, mpp: float) -> ManifestRow:
    """Write a tiled TIFF that states its resolution."""
    with tifffile.TiffWriter(path) as file:
        per_cm = 1e4 / mpp
        file.write(
            image,
            tile=(64, 64),
            photometric="rgb",
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
        )
    return ManifestRow(path, path.stem, None)


@pytest.mark.parametrize("finer", [1, 4])
def test_slide_of_stitched_patches_has_the_map_of_the_patient(
    trained: Checkpoint, cohort: Pack, stitched: np.ndarray, tmp_path: Path, finer: int
):
    patient = cohort.patients[0]
    make_builder(trained, tmp_path / "pack").build(PackSource(cohort, [patient]))
    image = stitched.repeat(finer, axis=0).repeat(finer, axis=1)
    row = write_slide(tmp_path / "s.tif", image, mpp=4 / finer)
    report = build(trained, tmp_path / "slides", [row])
    assert list(report.made) == ["s"]
    expected = read_map(tmp_path / "pack" / f"{patient}.h5")
    found = read_map(tmp_path / "slides" / "s.h5")
    is_patch = np.isfinite(expected.probability_grid())
    np.testing.assert_array_equal(
        found.probability_grid()[is_patch], expected.probability_grid()[is_patch]
    )
    patient_cam, slide_cam = expected.cam_mosaic(), found.cam_mosaic()
    np.testing.assert_array_equal(
        slide_cam[np.isfinite(patient_cam)], patient_cam[np.isfinite(patient_cam)]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "slides" / "s.h5"), stitched)
    assert (found.source, found.mpp, found.mpp_source) == ("slide", 4.0, "file")
    assert found.level0_mpp == pytest.approx(4 / finer)
    assert found.coords[-1].tolist() == (found.row_col[-1][::-1] * 50 * finer).tolist()
    assert found.level0_size == (image.shape[1], image.shape[0])
    assert (found.label == -1).all()
    assert found.slide.thumbnail.shape[:2] == found.slide.tissue.shape


def test_only_the_tissue_of_the_mask_is_mapped(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path
):
    row = write_slide(tmp_path / "s.tif", stitched, mpp=4.0)
    mask = np.zeros(stitched.shape[:2], np.uint8)
    mask[50:100, 100:150] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    settings = SlideSettings(mask=tmp_path / "mask.png")
    build(trained, tmp_path, [row], settings)
    found = read_map(tmp_path / "s.h5")
    assert found.row_col.tolist() == [[1, 2]]
    assert found.slide.tissue.mean() == pytest.approx(mask.mean() / 255, rel=0.3)
    mask[98:102, 149:152] = 255  # a corner of three more
    Image.fromarray(mask).save(tmp_path / "mask.png")
    build(trained, tmp_path, [row], replace(settings, min_tissue=0))
    assert read_map(tmp_path / "s.h5").row_col.tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_cells_of_overlapping_patches_are_their_centers(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path
):
    row = write_slide(tmp_path / "s.tif", stitched, mpp=4.0)
    build(trained, tmp_path / "a", [row])
    half = SlideSettings(min_tissue=0, stride_px=30)
    build(trained, tmp_path / "b", [row], half)
    whole, found = read_map(tmp_path / "a" / "s.h5"), read_map(tmp_path / "b" / "s.h5")
    # Every fifth patch of 30 px is every third of 50 px.
    np.testing.assert_array_equal(
        found.probability_grid()[::5, ::5], whole.probability_grid()[::3, ::3]
    )
    image = read_image(tmp_path / "b" / "s.h5")
    rows, cols = found.shape
    assert image.shape == (rows * 30, cols * 30, 3)
    # The picture begins 10 px into the slide: the first cell is the middle of the first patch.
    inside = image[: stitched.shape[0] - 60, : stitched.shape[1] - 60]
    np.testing.assert_array_equal(
        inside, stitched[10 : 10 + inside.shape[0], 10 : 10 + inside.shape[1]]
    )
    with h5py.File(tmp_path / "b" / "s.h5") as file:
        assert file["map/x"][:2].tolist() == [100.0, 220.0]  # um: centres of the first two
        assert file["coords"].attrs["overlap"] == 20
        assert file.attrs["stride_px"] == 30
        side = round(6 * 30 / 50)
        assert file["cam/mosaic"].shape == (rows * side, cols * side)


def test_unusable_slides_fail_and_other_slides_are_mapped(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path
):
    good = write_slide(tmp_path / "good.tif", stitched, mpp=4.0)
    Image.fromarray(stitched).save(tmp_path / "plain.png")
    whole = (tmp_path / "good.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.svs").touch()
    Image.fromarray(stitched).save(tmp_path / "fake.svs", format="JPEG")
    names = ["plain.png", "cut.tif", "empty.svs", "fake.svs", "none.svs"]
    rows = [ManifestRow(tmp_path / name, name.split(".")[0], None) for name in names]
    report = build(trained, tmp_path / "maps", [*rows, good])
    assert list(report.made) == ["good"]
    assert list(report.failed) == ["plain", "cut", "empty", "fake", "none"]
    assert "give --mpp" in report.failed["plain"]
    assert all("\n" not in reason for reason in report.failed.values())
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["good.h5"]
    given = SlideSettings(mpp=4.0, min_tissue=0)
    again = build(trained, tmp_path / "maps", rows[:1], given)
    assert read_map(again.made["plain"]).mpp_source == "given"


def test_map_is_kept_until_slide_or_settings_change(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path
):
    row = write_slide(tmp_path / "s.tif", stitched, mpp=4.0)
    out = tmp_path / "maps"
    assert build(trained, out, [row]).made
    with h5py.File(out / "s.h5") as file:
        key = json.loads(file.attrs["provenance"])["identity"]
    assert (key["min_tissue"], key["stride_px"], key["mask"]) == (0, 50, None)
    assert build(trained, out, [row]).kept
    assert build(trained, out, [row], SlideSettings(min_tissue=0.2)).made
    assert build(trained, out, [row]).made
    changed = stitched.copy()
    changed[:50, :50] = 0
    write_slide(tmp_path / "s.tif", changed, mpp=4.0)
    assert build(trained, out, [row]).made


def test_stop_keeps_complete_maps(trained: Checkpoint, stitched: np.ndarray, tmp_path: Path):
    rows = [write_slide(tmp_path / f"{name}.tif", stitched, mpp=4.0) for name in "abc"]
    out = tmp_path / "maps"
    with pytest.raises(StoppedError, match=r"Stopped by SIGTERM with [12] of 3 maps made"):
        build(trained, out, rows, batch_size=16, stop=StopAfter(12))
    made = {path.name for path in out.iterdir()}
    assert made
    assert not any(name.startswith(".") for name in made)
    report = build(trained, out, rows)
    assert len(report.kept) == len(made)
    assert len(report.made) + len(report.kept) == 3


def test_network_is_built_once_and_only_if_needed(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    built, checkpoint_build = [], Checkpoint.build

    def counting(checkpoint: Checkpoint) -> PatchClassifier:
        built.append(checkpoint)
        return checkpoint_build(checkpoint)

    monkeypatch.setattr(Checkpoint, "build", counting)
    rows = [write_slide(tmp_path / f"{name}.tif", stitched[:100], mpp=4.0) for name in "ab"]
    for _ in range(2):
        build(trained, tmp_path / "maps", rows)
        assert len(built) == 1


def test_training_patient_is_logged(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    row = write_slide(tmp_path / "s.tif", stitched[:100], mpp=4.0)
    seen = sorted(trained.patients("train"))[0]
    with caplog.at_level("INFO", logger="wsi_idc"):
        build(trained, tmp_path, [row])
        assert "trained on" not in caplog.text
        build(trained, tmp_path, [row, replace(row, patient=seen)])
    assert f"trained on 1 of these patients ({seen} first): their maps flatter it" in caplog.text


def test_other_slide_of_the_same_name_is_a_warning(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for folder, image in (("a", stitched[:100]), ("b", stitched[50:150])):
        (tmp_path / folder).mkdir()
        row = write_slide(tmp_path / folder / "s.tif", image, mpp=4.0)
        build(trained, tmp_path, [row])
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    first, second = (tmp_path / folder / "s.tif" for folder in "ab")
    assert f"s.h5 was made from {first} and is replaced by the map of {second}; give" in warning
    caplog.clear()
    write_slide(second, stitched[:100], mpp=4.0)  # the same file, changed
    assert build(trained, tmp_path, [row]).made
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(("spare", "has_image"), [(0, True), (-1, False)])
def test_image_beyond_the_memory_limit_is_left_out(
    trained: Checkpoint,
    stitched: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spare: int,
    has_image: bool,
):
    # 2 x 2 cells of 30 px, and a patch of 50 px in each.
    needed = 4 * 50**2 * 3
    monkeypatch.setattr("wsi_idc.maps.from_slides._MAX_IMAGE_BYTES", needed + spare)
    row = write_slide(tmp_path / "s.tif", stitched[:80, :80], mpp=4.0)
    settings = SlideSettings(min_tissue=0, stride_px=30)
    (planned,) = SlideSource([row], settings).plan(make_builder(trained, tmp_path))
    build(trained, tmp_path, [row], settings)
    assert (read_image(tmp_path / "s.h5") is not None) is has_image
    assert caplog.text.count("is left out of the map") == (0 if has_image else 2)
    # 64 bytes a patch and 32 a cell, CAMs of 6 x 6 twice; then the picture.
    without = 4 * (64 + 32 + 2 * 4 * 36)
    assert planned.disk_mb * 1e6 == pytest.approx(without + has_image * 4 * 30**2 * 3)


def test_ensemble_of_different_patch_sizes_is_refused(trained: Checkpoint, tmp_path: Path):
    other = replace(trained, input=replace(trained.input, mpp=2.0), fingerprint="other")
    both = MapBuilder(Predictor((trained, other)), select_device("cpu"), tmp_path)
    with pytest.raises(CheckpointError, match="take patches of different sizes, 50 px of 2 um"):
        input_spec(both.predictor)


def test_patient_id_cannot_leave_the_folder(trained: Checkpoint, tmp_path: Path):
    row = ManifestRow(tmp_path / "s.tif", "../evil", None)
    with pytest.raises(DataError, match="cannot be a patient id"):
        build(trained, tmp_path / "maps", [row])


@pytest.mark.parametrize(("make", "reason"), [(os.mkfifo, "not a regular"), (None, "no such file")])
def test_mask_that_is_not_a_file_fails(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path, make, reason: str
):
    row = write_slide(tmp_path / "s.tif", stitched, mpp=4.0)
    if make:
        make(tmp_path / "mask.png")
    settings = SlideSettings(mask=tmp_path / "mask.png")
    report = build(trained, tmp_path / "maps", [row], settings)
    assert reason in report.failed["s"]


def test_report_places_overlapping_patches(
    trained: Checkpoint, stitched: np.ndarray, tmp_path: Path
):
    row = write_slide(tmp_path / "s.tif", stitched, mpp=4.0)
    half = SlideSettings(min_tissue=0, stride_px=30)
    build(trained, tmp_path, [row], half)
    patient_map = read_map(tmp_path / "s.h5")
    (thumbnail, *_), _ = tissue_pictures(patient_map, None)
    # The grid begins 10 px of 4 um into the slide, so the slide 0.04 mm before the grid.
    assert (thumbnail.x, thumbnail.y) == pytest.approx((-0.04, -0.04))
    assert patient_map.cell_cams().shape[1:] == (4, 4)
    assert cam_levels(patient_map).shape == tuple(4 * side for side in patient_map.shape)
