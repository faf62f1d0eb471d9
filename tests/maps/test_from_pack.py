import re
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torchcam.methods import GradCAM

from tests.small_slides import make_slides
from tests.stops import StopAfter
from wsi_idc.bench.fixtures import drawn_pack, make_checkpoint
from wsi_idc.core.errors import CheckpointError, DataError, DiskFullError, MapError, StoppedError
from wsi_idc.core.locks import locked
from wsi_idc.data import pack as pack_module
from wsi_idc.data.pack import Pack
from wsi_idc.data.slide_cutter import LabelSettings
from wsi_idc.data.slide_pack import prepare_slides
from wsi_idc.evaluation.evaluate import evaluate
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.maps.map_reader import read_map, read_provenance
from wsi_idc.maps.map_writer import MapReport
from wsi_idc.models.cam import CamSpec, cam_extractor
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.classifier import to_images
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.manifest import read_manifest
from wsi_idc.slides.tiling import SlideSettings

STATM = Path("/proc/self/statm")
_NUM_PATCHES, _NUM_PER_PATIENT, _PATCH_PX = 6_000, 100, 64
NAME = re.compile(r"(?P<patient>S\d+)_idx5_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])\.png")


Build = Callable[..., MapReport]


@pytest.fixture(scope="module")
def build(trained: Checkpoint, cohort: Pack) -> Build:
    """Return a function that maps patients of the cohort into a folder."""

    def build_maps(
        out: Path,
        *patients: str,
        checkpoint: Checkpoint = trained,
        pack: Pack = cohort,
        **options: object,
    ) -> MapReport:
        builder = MapBuilder(Predictor((checkpoint,)), select_device("cpu"), out, **options)
        return builder.build(PackSource(pack, patients))

    return build_maps


@pytest.fixture(scope="module")
def maps(build: Build, cohort: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps")
    assert list(build(out, *cohort.patients).made) == cohort.patients
    return out


@pytest.fixture
def patient(cohort: Pack) -> str:
    return cohort.patients[0]


def test_probability_is_in_the_cell_of_its_file_name(maps: Path, trained: Checkpoint, cohort: Pack):
    classifier = trained.build()
    for patient in cohort.patients[:2]:
        with h5py.File(maps / f"{patient}.h5") as file:
            probability, label = file["map/probability"][:], file["map/label"][:]
            rgb, raw, index = file["image/rgb"][:], file["cam/raw"][:], file["map/index"][:]
        num_filled = 0
        for position in cohort.rows_of(patient):
            found = NAME.search(cohort.paths()[position])
            row, col = (int(found["y"]) - 1) // 50, (int(found["x"]) - 1) // 50
            with torch.inference_mode():
                patch = torch.from_numpy(cohort.patches[[position]])
                logit = classifier(patch) / trained.temperature
            expected = float(torch.softmax(logit, dim=1)[0, 1])
            assert probability[row, col] == pytest.approx(expected, abs=1e-5)
            assert label[row, col] == int(found["label"])
            tissue = rgb[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50]
            np.testing.assert_array_equal(tissue, cohort.patches[position])
            assert raw[index[row, col]].shape == (6, 6)
            num_filled += 1
        assert np.isfinite(probability).sum() == num_filled


def test_cams_equal_torchcam(maps: Path, trained: Checkpoint, cohort: Pack, patient: str):
    classifier = trained.build()
    patches = torch.from_numpy(cohort.patches[cohort.rows_of(patient)])
    with GradCAM(classifier.network, target_layer=trained.cam_layer) as extractor:
        scores = classifier.network(classifier.preprocess(to_images(patches)).requires_grad_())
        expected = extractor(class_idx=1, scores=scores, normalized=False)[0].numpy()
    raw = read_map(maps / f"{patient}.h5").cam
    assert np.abs(raw - expected).max() / expected.max() < 1e-4


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_other_patients_change_nothing(
    maps: Path, build: Build, cohort: Pack, tmp_path: Path, batch_size: int
):
    patient = cohort.patients[3]
    build(tmp_path, patient, batch_size=batch_size)
    with h5py.File(maps / f"{patient}.h5") as one, h5py.File(tmp_path / f"{patient}.h5") as other:
        for name in ("logit", "probability", "cam/raw"):
            np.testing.assert_allclose(one[name][:], other[name][:], atol=1e-5)


def evaluated(predictor: Predictor, pack: Pack, patient: str) -> pd.DataFrame:
    """Return the predictions of ``evaluate`` on a patient."""
    config = {"device_config": select_device("cpu"), "batch_size": 64, "num_resamples": 1}
    return evaluate(predictor, pack, [patient], split="test", **config).predictions


def test_map_has_the_probabilities_of_evaluate(maps: Path, trained: Checkpoint, cohort: Pack):
    patient = sorted(trained.patients("test"))[0]
    table = evaluated(Predictor((trained,)), cohort, patient)
    probability = read_map(maps / f"{patient}.h5").probability
    # Equal to the last bit, although the map was built together with other patients.
    np.testing.assert_array_equal(table["probability"].to_numpy(np.float32), probability)


def test_second_run_computes_nothing(maps: Path, build: Build, cohort: Pack):
    before = {path: path.stat().st_mtime_ns for path in maps.iterdir()}
    report = build(maps, *cohort.patients)
    assert list(report.kept) == cohort.patients
    assert not report.made
    assert {path: path.stat().st_mtime_ns for path in maps.iterdir()} == before


@pytest.fixture
def other(trained: Checkpoint, tmp_path: Path) -> Checkpoint:
    """Return a checkpoint with another temperature."""
    path = tmp_path / "checkpoints" / "other.pt"
    save_checkpoint(path, replace(trained, temperature=3.0))
    return load_checkpoint(path)


def test_other_checkpoint_setting_or_resolution_needs_overwrite(
    build: Build, other: Checkpoint, cohort: Pack, patient: str, tmp_path: Path
):
    out = tmp_path / "maps"
    build(out, patient)
    before = (out / f"{patient}.h5").read_bytes()
    pack = Pack(cohort.path)
    pack.info = replace(cohort.info, mpp_source="given")
    changed = {"checkpoint": other, "with_image": False, "pack": pack}
    old = read_provenance(out / f"{patient}.h5")["identity"]["checkpoint"][:12]
    words = {
        "checkpoint": f"model ({old}, not {other.fingerprint[:12]})",
        "with_image": "picture of the tissue (on, not off)",
        "pack": f"source of the mpp ({cohort.info.mpp_source}, not given)",
    }
    for name, value in changed.items():
        report = build(out, patient, **{name: value})
        reason = f"was made with another {words[name]}; --overwrite replaces it, "
        reason += "another --out keeps both"
        assert report.failed == {patient: f"{out / patient}.h5 {reason}"}
        assert not report.made
    assert (out / f"{patient}.h5").read_bytes() == before
    assert list(build(out, patient, **changed, overwrite=True).made) == [patient]
    assert list(build(out, patient, **changed).kept) == [patient]
    assert read_map(out / f"{patient}.h5").mpp_source == "given"


def test_full_disk_ends_the_run(build: Build, patient: str, tmp_path: Path):
    before = set(threading.enumerate())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(DiskFullError, match="free some space"):
            build(tmp_path, patient)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) <= before


def test_unusable_file_is_kept_and_other_patients_are_mapped(build, cohort: Pack, tmp_path: Path):
    first, second = cohort.patients[:2]
    other_file = tmp_path / f"{first}.h5"
    other_file.write_text("not a map at all")
    report = build(tmp_path, first, second)
    assert list(report.made) == [second]
    assert "not a usable map" in report.failed[first]
    assert "--overwrite" in report.failed[first]
    assert other_file.read_text() == "not a map at all"


def test_map_locked_beyond_the_timeout_fails(build, cohort: Pack, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("wsi_idc.maps.map_writer.LOCK_TIMEOUT_SECONDS", 0.5)
    first, second = cohort.patients[:2]
    with locked(tmp_path / f".{first}.h5.partial", what=tmp_path):
        report = build(tmp_path, first, second)
    assert list(report.made) == [second]
    assert "another process is writing it" in report.failed[first]


def test_map_is_written_after_another_process_releases_it(build, patient: str, tmp_path: Path):
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / f".{patient}.h5.partial", what=tmp_path):
            held.set()
            released.wait(3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    report = build(tmp_path, patient)
    released.set()
    other.join()
    assert list(report.made) == [patient]
    assert [path.name for path in tmp_path.iterdir()] == [f"{patient}.h5"]


def test_partial_file_of_a_killed_run_is_replaced(build, patient: str, tmp_path: Path):
    (tmp_path / f".{patient}.h5.partial").write_bytes(b"half a map")
    build(tmp_path, patient)
    assert [path.name for path in tmp_path.iterdir()] == [f"{patient}.h5"]


def test_stop_keeps_complete_maps_and_the_next_call_resumes(build, cohort: Pack, tmp_path: Path):
    with pytest.raises(StoppedError, match=r"Stopped by SIGTERM with [1-5] of 6 maps made"):
        build(tmp_path, *cohort.patients, batch_size=16, stop=StopAfter(8))
    made = {path.name for path in tmp_path.iterdir()}
    assert 1 <= len(made) <= 5
    assert not any(name.startswith(".") for name in made)
    report = build(tmp_path, *cohort.patients)
    assert {f"{patient}.h5" for patient in report.kept} == made
    assert len(report.made) + len(report.kept) == 6


def test_stop_is_raised_although_a_patient_has_failed(build, cohort: Pack, tmp_path: Path):
    first, second = cohort.patients[:2]
    (tmp_path / f"{first}.h5").write_text("not a map at all")
    with pytest.raises(StoppedError, match="with 0 of 1 maps made"):
        build(tmp_path, first, second, stop=StopAfter(0))


def test_unknown_patient_or_layer_writes_nothing(build: Build, tmp_path: Path):
    with pytest.raises(DataError, match=r"no patient '\.\./\.\./x'"):
        build(tmp_path / "maps", "S0001", "../../x")
    with pytest.raises(CheckpointError, match=r"has no layer 'features\.99'"):
        build(tmp_path / "maps", "S0001", cam=CamSpec(layer="features.99"))
    assert not (tmp_path / "maps").exists()


def test_map_has_the_role_of_its_patient(maps: Path, trained: Checkpoint):
    for role in ("train", "test"):
        patient = sorted(trained.patients(role))[0]
        assert read_map(maps / f"{patient}.h5").model["role_of_patient"] == role


def test_map_has_views_checkpoints_and_smoothing(
    trained: Checkpoint, cohort: Pack, other: Checkpoint, tmp_path: Path
):
    patient = sorted(trained.patients("test"))[0]
    predictor = Predictor((trained, other), tta=True, smooth=True)
    builder = MapBuilder(predictor, select_device("cpu"), tmp_path)
    source = PackSource(cohort, [patient])
    builder.build(source)
    table = evaluated(predictor, cohort, patient)
    found = read_map(tmp_path / f"{patient}.h5")
    columns = {
        "probability": found.unsmoothed,
        "probability_smoothed": found.probability,
        "uncertainty": found.uncertainty,
    }
    for name, values in columns.items():
        np.testing.assert_array_equal(table[name].to_numpy(np.float32), values)
    assert found.smoothing == vars(predictor.smoothing)
    assert (found.threshold, found.temperature) == (predictor.smoothing.threshold, 1)
    assert found.unsmoothed_threshold == predictor.threshold
    assert (found.model["tta"], len(found.model["ensemble"])) == (True, 2)
    assert list(builder.build(source).kept) == [patient]
    single_view = replace(builder, predictor=replace(predictor, tta=False))
    assert list(single_view.build(source).failed) == [patient]


def test_other_cam_needs_overwrite(
    build, trained: Checkpoint, cohort: Pack, patient, tmp_path: Path
):
    build(tmp_path, patient)
    spec = CamSpec("layercam", "features.1", 0)
    assert list(build(tmp_path, patient, cam=spec).failed) == [patient]
    assert list(build(tmp_path, patient, cam=spec, overwrite=True).made) == [patient]
    found = read_map(tmp_path / f"{patient}.h5")
    assert (found.cam_method, found.cam_layer) == ("layercam", "features.1")
    assert found.cam_class == "non-IDC"
    with cam_extractor(trained.build(), **vars(spec)) as extract:
        rows = cohort.rows_of(patient)[:4]
        _, expected = extract(torch.from_numpy(cohort.patches[rows]))
    # After max pooling a rounding error may move a gradient to the neighbor.
    assert np.isclose(found.cam[:4], expected.numpy(), rtol=1e-3, atol=1e-6).mean() > 0.98
    assert list(build(tmp_path, patient, cam=None, overwrite=True).made) == [patient]
    assert read_map(tmp_path / f"{patient}.h5").cam is None


def test_cams_too_large_for_a_map_are_refused(
    build: Build, trained: Checkpoint, cohort: Pack, patient: str, tmp_path: Path, monkeypatch
):
    fine = replace(trained, input=replace(trained.input, input_px=257))
    early = CamSpec(layer="features.0")
    with pytest.raises(CheckpointError, match=r"the CAM at layer features\.0 has 257x257 cells"):
        build(tmp_path, patient, checkpoint=fine, cam=early)
    num = len(cohort.rows_of(patient))
    monkeypatch.setattr("wsi_idc.maps.builder.MAX_CAM_BYTES", num * 50 * 50 * 4 - 1)
    with pytest.raises(MapError, match=rf"the CAMs of {num} patches at layer features\.0 take 0"):
        build(tmp_path, patient, cam=early)
    assert not list(tmp_path.iterdir())
    build(tmp_path, patient, cam=CamSpec())


def test_pages_that_were_read_are_released(cohort: Pack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pack_module, "_MAX_MAPPED_BYTES", 10 * 7500)
    pack = Pack(cohort.path)
    for start in range(0, 60, 4):
        rows = np.arange(start, start + 4)
        np.testing.assert_array_equal(pack.read(rows), cohort.patches[rows])
    assert pack._mapped_bytes <= 10 * 7500


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="resident memory is known on Linux only")
def test_memory_does_not_grow_with_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsi_idc.bench.fixtures._DRAWN_CELLS", 8)
    pack = drawn_pack(
        tmp_path / "p.h5", _NUM_PATCHES, a_patient=_NUM_PER_PATIENT, patch_px=_PATCH_PX
    )
    checkpoint, _ = make_checkpoint("cnn-bn", input_size=16, pack=pack)
    resident = []
    original = MapBuilder.patient_map

    def record(*args):
        num_pages = int(STATM.read_text().split()[1])
        resident.append(num_pages * resource.getpagesize() / 2**20)
        return original(*args)

    monkeypatch.setattr(MapBuilder, "patient_map", record)
    builder = MapBuilder(Predictor((checkpoint,)), select_device("cpu"), tmp_path / "maps")
    report = builder.build(PackSource(pack, pack.patients))
    assert len(report.made) == _NUM_PATCHES // _NUM_PER_PATIENT == len(resident)
    tenth = len(resident) // 10
    # The run reads 74 MB of pixels, more than the permitted growth.
    growth = max(resident[tenth:]) - 1.05 * max(resident[:tenth])
    assert growth < pack_module._MAX_MAPPED_BYTES / 2**20


def test_maps_of_packed_slides_are_those_of_the_slides_with_labels(
    build: Build, trained: Checkpoint, tmp_path: Path
):
    folder = make_slides(tmp_path)
    rows = read_manifest(folder / "slides" / "slides.csv")
    labels = LabelSettings(folder=folder / "outlines")
    report = prepare_slides(
        rows, tmp_path / "a.h5", settings=SlideSettings(), labels=labels, patch_px=50, mpp=4.0
    )
    made = build(tmp_path / "pack", "P", "Q", pack=Pack(report.pack))
    assert made.made == {name: tmp_path / "pack" / f"{name}.h5" for name in ("P/one", "P/two", "Q")}
    builder = MapBuilder(Predictor((trained,)), select_device("cpu"), tmp_path / "slides")
    assert builder.build(SlideSource(rows, SlideSettings())).failed == {}
    for name in made.made:
        found, expected = (read_map(tmp_path / kind / f"{name}.h5") for kind in ("pack", "slides"))
        is_kept = (expected.coords[:, None] == found.coords).all(axis=2).any(axis=1)
        np.testing.assert_array_equal(found.coords, expected.coords[is_kept])
        np.testing.assert_allclose(found.probability, expected.probability[is_kept], atol=1e-6)
        assert found.level0_size == expected.level0_size
        assert found.slide.mpp == expected.slide.mpp
        np.testing.assert_array_equal(found.slide.thumbnail, expected.slide.thumbnail)
        np.testing.assert_array_equal(found.slide.tissue, expected.slide.tissue)
    assert read_map(tmp_path / "pack" / "P" / "one.h5").label.tolist() == [1, -1, -1]
    assert read_map(tmp_path / "pack" / "P" / "two.h5").label.tolist() == [0]
