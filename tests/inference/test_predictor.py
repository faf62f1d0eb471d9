from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import predict, predict_logits
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint, Smoothing, load_checkpoint, save_checkpoint
from wsi_idc.runtime.device import select_device


@pytest.fixture(scope="session")
def other(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a checkpoint of other weights, temperature, threshold and smoothing."""
    generator = torch.Generator().manual_seed(5)
    state = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running_var" not in name
        else value
        for name, value in trained.state.items()
    }
    path = tmp_path_factory.mktemp("other") / "other.pt"
    smoothing = Smoothing(sigma_um=100.0, temperature=2.0, threshold=0.9)
    changed = replace(trained, state=state, temperature=2.0, threshold=0.9, smoothing=smoothing)
    save_checkpoint(path, changed)
    return load_checkpoint(path)


def logits(method: Predictor, pack: Pack, rows: np.ndarray) -> np.ndarray:
    parts = method.predict(pack, rows, device_config=select_device("cpu"), batch_size=32)
    return np.concatenate([part.logit for part in parts])


def test_the_eight_views_are_all_flips_and_turns(trained: Checkpoint, cohort: Pack):
    rows = np.arange(5)
    found = logits(Predictor((trained,), tta=True), cohort, rows)
    assert found.shape == (5, 8, 2)
    classifier = trained.build()
    patches = cohort.patches[rows]
    views = [
        np.rot90(start, turns, axes=(1, 2))
        for start in (patches, patches[:, :, ::-1])
        for turns in range(4)
    ]
    with torch.inference_mode():
        for number, view in enumerate(views):
            expected = classifier(torch.from_numpy(view.copy()))
            np.testing.assert_allclose(found[:, number], expected, atol=1e-5)


def test_the_cam_of_all_views_lies_as_the_patch_does(trained: Checkpoint, cohort: Pack):
    rows = np.arange(3)
    compute = select_device("cpu")
    (found,) = predict(
        [trained.build()], cohort, rows, device_config=compute, cam=CamSpec(), tta=True
    )
    classifier, patches = trained.build(), cohort.patches[rows]
    cams = []
    with torch.inference_mode():
        for flip in (False, True):
            for turns in range(4):
                seen = patches[:, :, ::-1] if flip else patches
                seen = np.rot90(seen, turns, axes=(1, 2)).copy()
                cam = logits_and_cam(classifier, torch.from_numpy(seen))[1].numpy()
                back = np.rot90(cam, -turns, axes=(1, 2))
                cams.append(back[:, :, ::-1] if flip else back)
    np.testing.assert_allclose(found.cam, np.mean(cams, axis=0), atol=1e-6)
    assert np.abs(found.cam - cams[0]).max() > 1e-3  # one view alone says something else


def test_one_checkpoint_and_one_view_are_as_ever(trained: Checkpoint, cohort: Pack):
    method = Predictor((trained,))
    logit = logits(method, cohort, np.arange(10))
    said = method.aggregate(logit)
    np.testing.assert_array_equal(said.logit, logit[:, 0])
    expected = softmax(logit[:, 0].astype(float) / trained.temperature, axis=1)[:, 1]
    np.testing.assert_allclose(said.probability, expected, atol=1e-7)
    assert said.uncertainty is None
    assert (method.temperature, method.threshold) == (trained.temperature, trained.threshold)


@pytest.mark.parametrize("tta", [False, True])
def test_an_ensemble_is_the_mean_of_calibrated_probabilities(
    trained: Checkpoint, other: Checkpoint, cohort: Pack, tta: bool
):
    rows = np.arange(12)
    method = Predictor((trained, other), tta=tta)
    said = method.aggregate(logits(method, cohort, rows))
    each = []
    for one in (trained, other):
        found = predict_logits(
            [one.build()], cohort, rows, device_config=select_device("cpu"), batch_size=32, tta=tta
        )
        each.append(softmax(found.astype(float) / one.temperature, axis=2)[:, :, 1])
    together = np.concatenate(each, axis=1)
    np.testing.assert_allclose(said.probability, together.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(said.uncertainty, together.std(axis=1), atol=1e-6)
    assert said.uncertainty.max() > 0.01
    # What a reader of the map computes from the logits is the probability too.
    again = softmax(said.logit.astype(float) / method.temperature, axis=1)[:, 1]
    np.testing.assert_allclose(again, said.probability, atol=1e-6)
    assert method.threshold == pytest.approx((trained.threshold + 0.9) / 2)


def test_what_does_not_go_together_is_refused(trained: Checkpoint, other: Checkpoint):
    with pytest.raises(CheckpointError, match="given twice"):
        Predictor((trained, other, trained))
    with pytest.raises(CheckpointError, match="have other classes, benign, IDC and non-IDC, IDC"):
        Predictor((trained, replace(other, class_names=("benign", "IDC"))))
    with pytest.raises(CheckpointError, match="no smoothing was fitted"):
        Predictor((replace(trained, smoothing=None),), smooth=True)


def test_smoothing_is_the_mean_of_the_checkpoints_own(trained: Checkpoint, other: Checkpoint):
    assert Predictor((trained,)).smoothing is None
    assert Predictor((trained,), smooth=True).smoothing == trained.smoothing
    found = Predictor((trained, other), smooth=True).smoothing
    assert found.sigma_um == pytest.approx((trained.smoothing.sigma_um + 100) / 2)
    assert found.threshold == pytest.approx((trained.smoothing.threshold + 0.9) / 2)


def test_roles_are_those_of_any_checkpoint(trained: Checkpoint, other: Checkpoint):
    moved = dict.fromkeys(sorted(trained.split), "test")
    method = Predictor((trained, replace(other, split=moved)))
    assert method.patients("train") == trained.patients("train")
    assert method.patients("test") == set(trained.split)
    assert method.cache_key()["checkpoint"] == [trained.fingerprint, other.fingerprint]
    assert Predictor((trained,)).cache_key()["checkpoint"] == trained.fingerprint


def test_networks_of_other_cam_grids_are_brought_to_the_first_ones(
    trained: Checkpoint, cohort: Pack, tmp_path: Path
):
    larger = replace(trained, input=replace(trained.input, input_px=100))
    compute, rows = select_device("cpu"), np.arange(2)
    parts = predict(
        [trained.build(), larger.build()], cohort, rows, device_config=compute, cam=CamSpec()
    )
    (both,) = parts
    (first,) = predict([trained.build()], cohort, rows, device_config=compute, cam=CamSpec())
    (second,) = predict([larger.build()], cohort, rows, device_config=compute, cam=CamSpec())
    assert second.cam.shape[1] > first.cam.shape[1]
    assert both.cam.shape == first.cam.shape
    # The share of the logit that the second one's CAM holds is kept.
    rest = (2 * both.cam - first.cam).sum(axis=(1, 2))
    np.testing.assert_allclose(rest, second.cam.sum(axis=(1, 2)), rtol=0.1)


def test_each_way_has_an_identity_of_its_own(trained: Checkpoint, other: Checkpoint):
    ways = [
        Predictor((trained,)),
        Predictor((trained,), tta=True),
        Predictor((trained,), smooth=True),
        Predictor((trained, other)),
    ]
    found = [way.cache_key() for way in ways]
    assert all(one not in found[:number] for number, one in enumerate(found))


def test_uncalibrated_is_a_temperature_of_one(trained: Checkpoint, cohort: Pack):
    method = Predictor((replace(trained, temperature=3.0),))
    logit = logits(method, cohort, np.arange(4))
    expected = softmax(logit[:, 0].astype(float), axis=1)[:, 1]
    np.testing.assert_allclose(
        method.uncalibrated().aggregate(logit).probability, expected, atol=1e-6
    )
