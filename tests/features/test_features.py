"""Files of features: their values, and the ways in which CLAM and TRIDENT read them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.cli.commands import RunCommand, run_command
from tests.slides.tiffs import write_tiff
from tests.stops import StopAfter
from wsi_idc.core.errors import CheckpointError, MapError, StoppedError
from wsi_idc.data.pack import Pack
from wsi_idc.features.encoder import Encoder, encoder_of_checkpoint, pretrained_encoder
from wsi_idc.features.extract import FeatureExtraction
from wsi_idc.features.feature_file import read_identity
from wsi_idc.geometry.grid import mosaic, shape_of
from wsi_idc.inference.features import encoder_fingerprint
from wsi_idc.inference.predict import predict_logits
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.slides.tiling import SlideSettings

CPU = select_device("cpu", "fp32")


@pytest.fixture
def encoder(trained: Checkpoint) -> Encoder:
    return encoder_of_checkpoint(trained)


@pytest.fixture
def extraction(encoder: Encoder, tmp_path: Path) -> FeatureExtraction:
    return FeatureExtraction(encoder, CPU, tmp_path / "features")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable:
    return lambda *words: run_command(capsys, *words)


def test_the_last_layer_gives_the_logits_of_the_features(
    extraction: FeatureExtraction, trained: Checkpoint, cohort: Pack
):
    patient = cohort.patients[0]
    report = replace(extraction, with_pt=True, batch_size=7).run(PackSource(cohort, [patient]))
    path = extraction.out / f"{patient}.h5"
    assert report.made == {patient: path}
    with h5py.File(path, "r") as file:  # as CLAM reads it
        features, coords = file["features"][:], file["coords"][:]
    assert (features.dtype, coords.dtype) == (np.float32, np.int64)
    rows, classifier = cohort.rows_of(patient), trained.build()
    weight, bias = (x.numpy(force=True) for x in (classifier.head.weight, classifier.head.bias))
    expected = predict_logits(classifier, cohort, rows, device_config=CPU)
    np.testing.assert_allclose(features @ weight.T + bias, expected, atol=1e-4)
    assert coords.tolist() == cohort.index.iloc[rows][["x", "y"]].to_numpy().tolist()
    tensor = torch.load(extraction.out / "pt_files" / f"{patient}.pt")
    np.testing.assert_array_equal(tensor.numpy(), features)


def test_the_features_of_a_slide_are_those_of_its_patches(
    extraction: FeatureExtraction, cohort: Pack, tmp_path: Path
):
    patient = cohort.patients[0]
    extraction.run(PackSource(cohort, [patient]))
    rows = cohort.rows_of(patient)
    cells = cohort.cells()[rows]
    image = mosaic(cohort.patches[rows], cells, shape=shape_of(cells), fill=255)
    image = image.repeat(2, axis=0).repeat(2, axis=1)
    slide = write_tiff(tmp_path / "s.tif", image, mpp=2)
    (tmp_path / "bad.svs").touch()
    settings = SlideSettings(min_tissue=0)
    report = extraction.run(SlideSource.from_files([slide, tmp_path / "bad.svs"], None, settings))
    assert list(report.made) == ["s"]
    assert list(report.failed) == ["bad"]
    with h5py.File(report.made["s"], "r") as file:  # as TRIDENT reads it
        features, coords = file["features"][:], file["coords"][:]
        attrs, about = dict(file["coords"].attrs), dict(file["features"].attrs)
    names = ("patch_size", "patch_size_level0", "level0_magnification", "target_magnification")
    assert [attrs[name] for name in names] == [50, 100, 5.0, 2.5]
    assert (attrs["name"], about["name"], about["encoder"]) == ("s", "s", "cnn-bn")
    at = {tuple(corner): row for row, corner in enumerate(coords.tolist())}
    with h5py.File(extraction.out / f"{patient}.h5") as file:
        order = [at[2 * x, 2 * y] for x, y in file["coords"][:].tolist()]
        np.testing.assert_allclose(features[order], file["features"][:], atol=1e-5)


def test_a_file_is_kept_until_its_settings_change(extraction: FeatureExtraction, cohort: Pack):
    name = cohort.patients[0]
    source, path = PackSource(cohort, [name]), extraction.out / f"{name}.h5"
    extraction.run(source)
    assert extraction.run(source).kept == {name: path}
    assert replace(extraction, with_pt=True).run(source).made == {name: path}
    other = replace(extraction.encoder, fingerprint="other")
    changed = replace(extraction, encoder=other)
    old = extraction.encoder.fingerprint[:12]
    reason = f"{path} was made with another encoder ({old}, not other); --overwrite replaces it"
    assert changed.run(source).failed[name].startswith(reason)
    assert replace(changed, overwrite=True).run(source).made == {name: path}
    assert read_identity(path)["encoder"] == "other"
    assert not (extraction.out / "pt_files" / f"{name}.pt").exists()  # it was of the old encoder
    path.write_bytes(path.read_bytes()[:3000])
    assert "is not a usable file of features" in extraction.run(source).failed[name]
    with pytest.raises(MapError, match="not a usable file"):
        read_identity(path)


def test_a_stop_keeps_complete_files(extraction: FeatureExtraction, cohort: Pack):
    source = PackSource(cohort, cohort.patients)
    with pytest.raises(StoppedError, match=r"with 1 of 6 files written"):
        replace(extraction, stop=StopAfter(3)).run(source)
    assert [path.name for path in extraction.out.iterdir()] == [f"{cohort.patients[0]}.h5"]
    report = extraction.run(source)
    assert (len(report.kept), len(report.made)) == (1, 5)


def test_the_fingerprint_does_not_depend_on_the_head(trained: Checkpoint):
    classifier = trained.build()
    before = encoder_fingerprint(classifier)
    classifier.interpolation = "bicubic"
    assert encoder_fingerprint(classifier) != before
    classifier.interpolation = "bilinear"
    with torch.no_grad():
        classifier.head.weight.zero_()
        assert encoder_fingerprint(classifier) == before
        next(classifier.network.parameters())[0] += 1
    assert encoder_fingerprint(classifier) != before


def test_networks_without_features_or_weights_are_refused(tmp_path: Path):
    def build(model: str, weights: str, patch_px: int | None = 50) -> Encoder:
        return pretrained_encoder(model, weights, input_px=0, patch_px=patch_px, mpp=0.5)

    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match="no linear layer after its pooling"):
        build("squeezenet1_1", str(tmp_path / "s.pth"))
    with pytest.raises(CheckpointError, match="features of random weights are useless"):
        build("resnet18", "none")
    with pytest.raises(CheckpointError, match="cnn has no usual patch size; give --patch-px"):
        build("cnn", "auto", None)
    with pytest.raises(CheckpointError, match="cnn has no ImageNet weights"):
        build("cnn", "auto")


def test_the_command_writes_files_that_info_describes(
    command: RunCommand,
    cohort: Pack,
    trained: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "c.pt", trained)
    words = ["features", "--data", cohort.path, "--checkpoint", "c.pt", "--json"]
    result = command(*words, "--all", "--shard", "2/6")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    (name,) = record["made"]
    found = json.loads(command("info", f"features/{name}.h5", "--json").out)
    assert (found["kind"], found["encoder"], found["patch_px"]) == ("features", "cnn-bn", 50)
    assert found["patches"] == record["patches"][name]
    assert found["features"] == record["num_features"]
    for wrong, message in {
        ("--all", "--weights", "w.pt"): "--weights needs --model",
        ("--all", "--model", "cnn"): "give --model or --checkpoint, not both",
        ("--all", "--patch-px", 50): "--patch-px needs --model",
        ("--all", "--manifest", "m.csv"): "these four cannot be combined",
    }.items():
        result = command(*words, *wrong)
        assert (result.code, message in result.err) == (2, True), result.err
