from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.smoothing import NeighborModel, Smoothing
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


def raw(
    predictor: Predictor, pack: Pack, rows: np.ndarray, cam: CamSpec | None = None
) -> RawPrediction:
    device_config = select_device("cpu")
    parts = predictor.predict(pack, rows, device_config=device_config, batch_size=32, cam=cam)
    return RawPrediction.concatenate(parts)


def idc_softmax(logit: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    return softmax(logit.astype(float) / temperature, axis=-1)[..., 1]


def test_tta_predicts_all_flips_and_turns_and_averages_their_cams(
    trained: Checkpoint, cohort: Pack
):
    rows = np.arange(5)
    prediction = raw(Predictor((trained,), tta=True), cohort, rows, CamSpec())
    assert prediction.logit.shape == (5, 8, 2)
    classifier, patches, cams = trained.build(), cohort.patches[rows], []
    views = [(flip, turns) for flip in (False, True) for turns in range(4)]
    for number, (flip, turns) in enumerate(views):
        view = np.rot90(patches[:, :, ::-1] if flip else patches, turns, axes=(1, 2))
        with torch.inference_mode():
            logit, cam = logits_and_cam(classifier, torch.from_numpy(view.copy()))
        np.testing.assert_allclose(prediction.logit[:, number], logit, atol=1e-5)
        back = np.rot90(cam.numpy(), -turns, axes=(1, 2))
        cams.append(back[:, :, ::-1] if flip else back)
    np.testing.assert_allclose(prediction.cam, np.mean(cams, axis=0), atol=1e-6)
    assert np.abs(prediction.cam - cams[0]).max() > 1e-3  # one view has another CAM


def test_one_checkpoint_and_one_view_need_no_averaging(trained: Checkpoint, cohort: Pack):
    trained = replace(trained, temperature=1.5)
    predictor = Predictor((trained,))
    logit = raw(predictor, cohort, np.arange(10)).logit
    prediction = predictor.aggregate(logit)
    np.testing.assert_array_equal(prediction.logit, logit[:, 0])
    expected = idc_softmax(logit[:, 0], trained.temperature)
    np.testing.assert_allclose(prediction.probability, expected, atol=1e-7)
    assert prediction.uncertainty is None
    assert (predictor.temperature, predictor.threshold) == (trained.temperature, trained.threshold)
    uncalibrated = predictor.uncalibrated().aggregate(logit).probability
    np.testing.assert_allclose(uncalibrated, idc_softmax(logit[:, 0]), atol=1e-6)
    assert np.abs(uncalibrated - prediction.probability).max() > 1e-3


@pytest.mark.parametrize("tta", [False, True])
def test_an_ensemble_is_the_mean_of_calibrated_probabilities(
    trained: Checkpoint, other: Checkpoint, cohort: Pack, tta: bool
):
    rows, predictor = np.arange(12), Predictor((trained, other), tta=tta)
    prediction = predictor.aggregate(raw(predictor, cohort, rows).logit)
    logits = {
        checkpoint.temperature: raw(Predictor((checkpoint,), tta=tta), cohort, rows).logit
        for checkpoint in (trained, other)
    }
    each = np.concatenate([idc_softmax(logit, t) for t, logit in logits.items()], axis=1)
    np.testing.assert_allclose(prediction.probability, each.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(prediction.uncertainty, each.std(axis=1), atol=1e-6)
    assert prediction.uncertainty.max() > 0.01
    # The logits of a map give the same probability.
    recomputed = idc_softmax(prediction.logit, predictor.temperature)
    np.testing.assert_allclose(recomputed, prediction.probability, atol=1e-6)
    assert predictor.threshold == pytest.approx((trained.threshold + 0.9) / 2)


def test_smoothing_is_the_mean_of_the_checkpoints_smoothing(trained: Checkpoint, other: Checkpoint):
    assert Predictor((trained,)).smoothing is None
    assert Predictor((trained,), smooth=True).smoothing == trained.smoothing
    smoothing = Predictor((trained, other), smooth=True).smoothing
    assert smoothing.sigma_um == pytest.approx((trained.smoothing.sigma_um + 100) / 2)
    assert smoothing.threshold == pytest.approx((trained.smoothing.threshold + 0.9) / 2)


def test_the_neighbor_model_replaces_the_gaussian_if_all_checkpoints_have_one(
    trained: Checkpoint, other: Checkpoint
):
    model = NeighborModel((1.0, 0, 0, 0, 0, 0), bias=0.5, threshold=0.2, patch_um=200.0)
    first = replace(trained, neighbors=model)
    assert Predictor((first,)).smoothing is None
    assert Predictor((first,), smooth=True).smoothing == model
    assert Predictor((first,), smooth=None).smoothing == model
    assert Predictor((first, other), smooth=None).smoothing is None
    second = replace(other, neighbors=replace(model, weights=(3.0, 2, 0, 0, 0, 0), threshold=0.4))
    mean = Predictor((first, second), smooth=True).smoothing
    assert isinstance(mean, NeighborModel)
    assert mean.weights == (2, 1, 0, 0, 0, 0)
    assert (mean.bias, mean.threshold, mean.patch_um) == (0.5, pytest.approx(0.3), 200)
    assert isinstance(Predictor((first, other), smooth=True).smoothing, Smoothing)


def test_patients_are_those_of_any_checkpoint(trained: Checkpoint, other: Checkpoint):
    predictor = Predictor((trained, replace(other, split=dict.fromkeys(trained.split, "test"))))
    assert predictor.patients("train") == trained.patients("train")
    assert predictor.patients("test") == set(trained.split)


def test_cache_keys_differ_by_checkpoints_and_options(trained: Checkpoint, other: Checkpoint):
    options = ({}, {"tta": True}, {"smooth": True})
    predictors = [Predictor((trained,), **each) for each in options]
    keys = [each.cache_key() for each in (*predictors, Predictor((trained, other)))]
    assert all(a != b for a, b in combinations(keys, 2))
    assert keys[0]["checkpoint"] == trained.fingerprint
    assert keys[3]["checkpoint"] == [trained.fingerprint, other.fingerprint]


def test_patches_may_differ_a_little_in_scale(trained: Checkpoint, cohort: Pack):
    rescaled = replace(trained, fingerprint=None, input=replace(trained.input, mpp=4.2))
    Predictor((trained, rescaled)).validate_input(cohort)


def test_an_unusable_predictor_is_refused(trained: Checkpoint, other: Checkpoint, cohort: Pack):
    unseen = replace(other, class_names=("benign", "IDC"))
    fine, large = (
        replace(trained, input=replace(trained.input, **change))
        for change in ({"mpp": 2.0}, {"patch_px": 96})
    )
    cam = CamSpec(layer="features.99")
    for call, message in (
        (lambda: Predictor((trained, other, trained)), "given twice"),
        (
            lambda: Predictor((trained, unseen)),
            "has the classes benign, IDC, but .* has non-IDC, IDC",
        ),
        (
            lambda: Predictor((replace(trained, smoothing=None),), smooth=True),
            "the checkpoint has no smoothing",
        ),
        (lambda: Predictor((fine,)).validate_input(cohort), "trained at 2 um/px"),
        (lambda: Predictor((other, large)).validate_input(cohort), "needs patches of 96 px"),
        (lambda: Predictor((trained,)).validate_cam(cam, patch_px=50), "no layer 'features.99'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            call()
