"""Linear probes: the fit, the cache of the features, and the checkpoint."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.classifiers import make_classifier
from tests.packs import make_small_cohort
from tests.stops import StopAfter
from tests.training.conftest import CONFIG
from wsi_idc.core.errors import CheckpointError, DataError, RunError, StoppedError
from wsi_idc.data.augmentation import dihedral
from wsi_idc.data.feature_cache import open_feature_cache
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.inference.features import cached_features, feature_extractor
from wsi_idc.inference.predict import predict_logits
from wsi_idc.inference.probability import idc_probability
from wsi_idc.metrics.classification import auc
from wsi_idc.models.cam import logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.probe import PENALTIES, choose_probe
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import labeled_rows
from wsi_idc.training.train import train

PROBE = replace(CONFIG, freeze="all", weights="none")


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Return a pack in a folder of the test, which also has the cache of the features."""
    return make_small_cohort(tmp_path / "small.h5")


def fit(pack: Pack, run: Path, config: TrainConfig = PROBE, **options: object) -> Checkpoint:
    split = make_split(pack, "ratio:50/25/25")
    device_config = select_device("cpu")
    return train(config, pack, split, run=Run(run), device_config=device_config, **options)


def counts(log: str) -> list[tuple[int, int]]:
    """Return the numbers of computed and of read features of each training in a log."""
    lines = re.findall(r"features: (\d+) computed, (\d+) read from", log)
    return [(int(computed), int(read)) for computed, read in lines]


def test_a_second_probe_reads_the_features_and_gives_the_same_weights(
    pack: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    first = fit(pack, tmp_path / "a")
    second = fit(pack, tmp_path / "b", replace(PROBE, threshold_by="youden"))
    assert counts(caplog.text) == [(48, 0), (0, 48)]
    for name, value in first.state.items():
        torch.testing.assert_close(second.state[name], value, atol=0, rtol=0)
    same = fit(pack, tmp_path / "c", replace(PROBE, imbalance="oversample"))
    for name, value in first.state.items():
        torch.testing.assert_close(same.state[name], value, atol=0, rtol=0)
    fit(pack, tmp_path / "d", replace(PROBE, seed=1))  # other random weights
    assert counts(caplog.text)[2:] == [(0, 48), (48, 0)]
    assert len(list((tmp_path / "small.features").glob("*.h5"))) == 2


def test_the_checkpoint_has_the_logits_metrics_and_cams_of_a_usual_one(pack: Pack, tmp_path: Path):
    checkpoint, device_config = fit(pack, tmp_path / "a"), select_device("cpu")
    assert Run(tmp_path / "a").is_finished()
    classifier = checkpoint.build().requires_grad_(False)
    weight, bias = classifier.head.weight, classifier.head.bias
    torch.testing.assert_close(weight[0], -weight[1])
    rows = labeled_rows(pack, checkpoint.patients("val"))
    logit = predict_logits(classifier, pack, rows, device_config=device_config)
    label = pack.index["label"].to_numpy()[rows]
    probability = idc_probability(logit, temperature=checkpoint.temperature)
    val = checkpoint.metrics["val"]
    assert val["auc"] == pytest.approx(auc(label, probability), abs=1e-6)
    assert checkpoint.metrics["penalty"] in PENALTIES
    assert checkpoint.config["freeze"] == "all"
    assert checkpoint.novelty is not None
    patches = torch.from_numpy(np.array(pack.patches[:2]))
    _, cam = logits_and_cam(classifier, patches)
    assert torch.isfinite(cam).all()
    # The class weights shift only the log odds, and the shift is removed from the bias.
    train_label = pack.index["label"].to_numpy()[labeled_rows(pack, checkpoint.patients("train"))]
    odds = np.log((train_label == 0).sum() / (train_label == 1).sum())
    assert float(bias[0] + bias[1]) == pytest.approx(-odds, abs=1e-5)


def test_a_stop_keeps_the_features_so_far(
    pack: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    with pytest.raises(StoppedError, match="SIGTERM after the features of 16 of 48 patches"):
        fit(pack, tmp_path / "a", micro_batch=8, stop=StopAfter(0))
    fit(pack, tmp_path / "a")
    assert counts(caplog.text) == [(16, 0), (32, 16)]


def test_views_are_computed_once_each_and_only_for_train(
    pack: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    plain = fit(pack, tmp_path / "a")
    two = fit(pack, tmp_path / "b", replace(PROBE, views=2))
    fit(pack, tmp_path / "c", replace(PROBE, views=3))
    of_views = re.findall(r"features of view (\d): (\d+) computed, (\d+) read", caplog.text)
    assert of_views == [("2", "32", "0"), ("2", "0", "32"), ("3", "32", "0")]
    assert counts(caplog.text) == [(48, 0), (0, 48), (0, 48)]
    assert not torch.equal(plain.state["classifier.weight"], two.state["classifier.weight"])
    assert len(list((tmp_path / "small.features").glob("*.h5"))) == 3


def test_the_features_of_a_view_are_those_of_the_turned_patches(pack: Pack, tmp_path: Path):
    classifier, rows = make_classifier("cnn-bn"), np.arange(5)
    options = {"folder": tmp_path / "cache", "device_config": select_device("cpu")}
    plain = cached_features(classifier, pack, rows, **options)
    for view in (1, 6):
        found = cached_features(classifier, pack, rows, view=view, **options)
        assert found.statistics is None
        images = torch.from_numpy(np.array(pack.patches[rows])).permute(0, 3, 1, 2)
        patches = dihedral(images, torch.full((5,), view)).permute(0, 2, 3, 1).contiguous().numpy()
        with feature_extractor(classifier, device_config=options["device_config"]) as extract:
            (expected,) = extract([patches])
        np.testing.assert_allclose(found.features, expected.features, atol=1e-6)
        assert not np.allclose(found.features, plain.features, atol=1e-3)


def test_a_patch_has_the_same_weight_for_any_number_of_views():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    label = (features[:, 0] + rng.normal(size=200) > 0).astype(np.int64)
    val = features[:100].copy(), label[:100]
    twice = np.tile(features, (2, 1)), np.tile(label, 2)
    once = choose_probe(features, label, *val, class_weight=np.ones(2))
    probe = choose_probe(*twice, *val, class_weight=np.ones(2) / 2)
    assert probe.penalty == once.penalty
    np.testing.assert_allclose(probe.weight, once.weight, atol=1e-3)


def test_features_that_do_not_fit_into_the_memory_are_refused_before_the_start(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wsi_idc.training.probe.available_memory", lambda: 2**10)
    with pytest.raises(RunError, match=r"^the features of 32 train patches in 8 views need 0\.\d"):
        fit(pack, tmp_path / "a", replace(PROBE, views=8))
    assert not Run(tmp_path / "a").exists()


def test_a_penalty_is_chosen_by_the_auc_on_val():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5)).astype(np.float32) * [1, 10, 100, 1, 0]
    label = (features[:, 0] + 0.1 * rng.normal(size=400) > 0).astype(np.int64)
    parts = features[:300].astype(np.float32), label[:300], features[300:].astype(np.float32)
    probe = choose_probe(*parts, label[300:], class_weight=np.ones(2))
    assert probe.auc == pytest.approx(auc(label[300:], parts[2] @ probe.weight))
    assert probe.auc > 0.99
    assert np.argmax(np.abs(probe.weight)) == 0


def test_a_network_without_features_does_not_replace_a_finished_run(pack: Pack, tmp_path: Path):
    fit(pack, tmp_path / "a")
    other = replace(PROBE, model="squeezenet1_1", input_size=64)
    with pytest.raises(CheckpointError, match="has no features"):
        fit(pack, tmp_path / "a", other, overwrite=True)
    assert Run(tmp_path / "a").is_finished()


def test_settings_without_effect_are_refused():
    for change in ({"mixup": 0.2}, {"cell_loss": 0.5}, {"imbalance": "focal"}):
        with pytest.raises(RunError, match="freeze all fits only a linear layer, without"):
            replace(PROBE, **change)
    with pytest.raises(RunError, match="freeze is 'most'; it must be of type int"):
        replace(PROBE, freeze="most")
    with pytest.raises(RunError, match="views 8 has no effect without freeze all"):
        TrainConfig(views=8)


def test_the_features_are_in_the_run_if_the_folder_of_the_pack_cannot_be_written(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The superuser may write into every folder.
    monkeypatch.setattr("wsi_idc.training.probe.os.access", lambda *_: False)
    fit(pack, tmp_path / "a")
    assert not (tmp_path / "small.features").exists()
    assert len(list((tmp_path / "a" / "features").glob("*.h5"))) == 1


def test_the_features_are_in_the_run_if_their_folder_belongs_to_another_user(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "small.features").mkdir()
    monkeypatch.setattr("wsi_idc.training.probe.os.access", lambda path, _: path == tmp_path)
    fit(pack, tmp_path / "a")
    assert not list((tmp_path / "small.features").iterdir())


def test_a_damaged_value_in_a_cache_is_an_error(pack: Pack, tmp_path: Path):
    fit(pack, tmp_path / "a")
    (path,) = (tmp_path / "small.features").glob("*.h5")
    with h5py.File(path, "r+") as file:
        file["features"][0, 0] = np.nan
    with pytest.raises(DataError, match="is damaged: a feature is not a finite number"):
        fit(pack, tmp_path / "b")


def test_a_cache_continues_and_refuses_damage(tmp_path: Path):
    key, lengths = {"encoder": "a"}, {"features": 3}
    rows, values = np.array([1, 2, 5]), np.arange(9, dtype=np.float32).reshape(3, 3)

    def opened(**other: object):
        return open_feature_cache(tmp_path, {**key, **other}, num_rows=8, lengths=lengths)

    with opened() as cache:
        assert cache.missing(np.arange(8)).tolist() == list(range(8))
        cache.write(rows, features=values)
    with opened() as cache:
        assert cache.missing(np.arange(8)).tolist() == [0, 3, 4, 6, 7]
        np.testing.assert_array_equal(cache.read("features", rows[::-1]), values[::-1])
    with opened(data="b") as cache:
        assert len(cache.missing(rows)) == 3
    path = next(path for path in tmp_path.glob("*.h5") if path != cache.path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="is not a usable cache"), opened():
        pass
