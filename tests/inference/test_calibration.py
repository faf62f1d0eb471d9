import re
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from wsi_idc.inference.calibration import (
    best_f1_threshold,
    best_youden_threshold,
    calibrate,
    fit_temperature,
    sensitivity_threshold,
)
from wsi_idc.inference.probability import idc_probability, smoothed_probability
from wsi_idc.metrics.classification import ece
from wsi_idc.models.smoothing import Smoothing


def pairs(odds: np.ndarray) -> np.ndarray:
    """Return logits (N, 2) of log odds (N,)."""
    return np.stack([np.zeros_like(odds), odds], axis=1)


def grid(side: int) -> np.ndarray:
    return np.argwhere(np.ones((side, side))).astype(np.int32)


def test_a_known_temperature_is_fitted():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (20_000, 2))
    label = (rng.random(len(logit)) < idc_probability(logit, temperature=1.0)).astype(np.int64)
    temperature = fit_temperature(logit * 2.5, label)
    assert temperature == pytest.approx(2.5, rel=0.03)
    before = ece(label, idc_probability(logit * 2.5, temperature=1.0))
    assert ece(label, idc_probability(logit * 2.5, temperature=temperature)) < before / 5


def test_a_temperature_that_increases_the_ece_is_set_to_1(caplog: pytest.LogCaptureFixture):
    # 90 of 100 patches with a probability of 0.9 are IDC: the model is calibrated. But 10 patches
    # are confident errors, which the cross-entropy punishes.
    odds = np.repeat([np.log(9), 6.0], [100, 10])
    label = np.repeat([1, 0, 0], [90, 10, 10])
    cells = np.argwhere(np.ones((10, 11))).astype(np.int32)
    assert fit_temperature(pairs(odds), label) > 2
    with caplog.at_level("INFO", logger="wsi_idc"):
        calibration = calibrate(pairs(odds), label, np.zeros(110), cells, patch_um=200.0)
    assert calibration.temperature == 1.0
    (line,) = [text for text in caplog.messages if text.startswith("temperature: ")]
    numbers = [float(text) for text in re.findall(r"\d+\.\d{3}", line)]
    fitted, before, after = numbers
    assert fitted == pytest.approx(fit_temperature(pairs(odds), label), abs=0.0005)
    for value, temperature in ((before, 1.0), (after, fitted)):
        probability = idc_probability(pairs(odds), temperature=temperature)
        assert value == pytest.approx(ece(label, probability), abs=0.001)
    caplog.clear()
    # Without the errors, the fitted temperature is 1; for overconfident logits, it is kept.
    first = pairs(2 * odds[:100]), label[:100], np.zeros(100), cells[:100]
    calibration = calibrate(*first, patch_um=200.0)
    assert calibration.temperature == pytest.approx(2, rel=1e-3)
    assert not [text for text in caplog.messages if text.startswith("temperature")]


def test_probability_is_the_softmax_of_the_divided_logits():
    probability = idc_probability(np.array([[0.0, 2.0], [1.0, -1.0]], np.float32), temperature=2.0)
    assert probability.tolist() == pytest.approx([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))])
    assert probability.dtype == np.float32
    large = np.array([[-1e4, 1e4]])
    assert idc_probability(large, temperature=0.1).tolist() == [1.0]


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 200)
    return label, np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)


F1, YOUDEN = (best_f1_threshold, f1_score), (best_youden_threshold, balanced_accuracy_score)


@pytest.mark.parametrize(("choose", "score"), [F1, YOUDEN])
def test_the_threshold_has_the_best_score(scored: tuple[np.ndarray, np.ndarray], choose, score):
    label, probability = scored
    threshold = choose(label, probability)
    best = max(score(label, probability >= value) for value in probability)
    assert score(label, probability >= threshold) == pytest.approx(best)
    assert np.abs(probability - threshold).min() > 0  # between two patches
    # Below equal probabilities.
    assert choose(np.array([0, 1, 1]), np.full(3, 0.3)) == pytest.approx(0.15)


@pytest.mark.parametrize(("choose", "score"), [F1, YOUDEN])
def test_a_threshold_between_neighboring_numbers_calls_the_larger_one(choose, score):
    step = np.arange(9, dtype=np.int32)
    values = (np.float32(0.9999).view(np.int32) + step).view(np.float32)
    for index in range(1, 9):
        label, probability = (step >= index).astype(np.int64), values
        threshold = choose(label, probability)
        assert score(label, probability >= threshold) == 1.0
    target = sensitivity_threshold(step % 2, values, target=0.75)
    assert (values >= target).tolist() == (step >= 3).tolist()


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
def test_a_target_sensitivity_is_reached_at_the_largest_threshold(
    scored: tuple[np.ndarray, np.ndarray], target: float
):
    label, probability = scored
    threshold = sensitivity_threshold(label, probability, target=target)
    assert recall_score(label, probability >= threshold) >= target
    higher = probability[probability > threshold].min() + 1e-9
    assert recall_score(label, probability >= higher) < target


def test_a_target_sensitivity_may_miss_its_exact_number_of_patches():
    probability = np.arange(1, 11) / 11  # a tenth of 10 is 0.9999999999999998
    threshold = sensitivity_threshold(np.ones(10, int), probability, target=0.9)
    assert (probability < threshold).sum() == 1


def test_a_temperature_of_the_gaussian_that_increases_the_ece_is_set_to_1(
    caplog: pytest.LogCaptureFixture,
):
    # Every slide has one patch, so that the Gaussian filter changes nothing.
    odds = np.repeat([np.log(9), 6.0], [100, 10])
    label = np.repeat([1, 0, 0], [90, 10, 10])
    cells = np.zeros((110, 2), np.int32)
    with caplog.at_level("INFO", logger="wsi_idc"):
        calibration = calibrate(pairs(odds), label, np.arange(110), cells, patch_um=200.0)
    assert calibration.smoothing.temperature == 1.0
    assert [text.split(",")[0] for text in caplog.messages if text.startswith("temperature")] == [
        "temperature: 1",
        "temperature of the Gaussian: 1",
    ]
    probability = idc_probability(pairs(odds), temperature=1.0)
    assert calibration.smoothing.threshold == best_f1_threshold(label, probability)


def test_noise_over_regions_is_smoothed_and_noise_over_noise_is_not():
    rng = np.random.default_rng(0)
    cells, patient = grid(40), np.zeros(1600, int)
    region = ((cells[:, 0] // 10 + cells[:, 1] // 10) % 2).astype(np.int64)
    scattered = rng.permutation(region)
    sigma_um = {}
    for name, label in (("region", region), ("scattered", scattered)):
        logit = pairs(rng.normal(2.0 * (2 * label - 1), 2.0))
        calibration = calibrate(logit, label, patient, cells, patch_um=200.0)
        smoothing = calibration.smoothing
        probability = idc_probability(logit, temperature=calibration.temperature)
        result = smoothed(probability, patient, cells, **vars(smoothing))
        raw_accuracy = ((probability >= calibration.threshold) == label).mean()
        accuracy = ((result >= smoothing.threshold) == label).mean()
        if name == "region":
            assert accuracy > raw_accuracy + 0.05
        else:
            assert accuracy == pytest.approx(raw_accuracy, abs=0.01)
        sigma_um[name] = smoothing.sigma_um
    assert sigma_um["region"] > 100
    assert sigma_um["scattered"] < 60


@pytest.mark.parametrize(
    ("options", "choose"),
    [
        ({}, best_f1_threshold),
        ({"threshold_by": "youden"}, best_youden_threshold),
        ({"target_sensitivity": 0.9}, partial(sensitivity_threshold, target=0.9)),
    ],
)
def test_both_thresholds_apply_after_their_temperature(options: dict, choose):
    rng = np.random.default_rng(1)
    cells, label = grid(20), ((grid(20)[:, 0] // 10) % 2).astype(np.int64)
    logit = pairs(rng.normal(1.0 * (2 * label - 1), 2.0))
    calibration = calibrate(logit, label, np.zeros(400), cells, patch_um=200.0, **options)
    smoothing = calibration.smoothing
    probability = idc_probability(logit, temperature=calibration.temperature)
    assert calibration.threshold == choose(label, probability)
    result = smoothed(probability, np.zeros(400), cells, **vars(smoothing))
    assert smoothing.temperature != pytest.approx(1, abs=0.05)
    assert smoothing.threshold == pytest.approx(choose(label, result), abs=1e-6)


def smoothed(probability: np.ndarray, patient: np.ndarray, cells: np.ndarray, **smoothing: float):
    values = Smoothing(**{"temperature": 1.0, "threshold": 0.5, **smoothing})
    return smoothed_probability(probability, patient, cells, smoothing=values, cell_um=200.0)


def test_smoothing_stays_within_a_patient_in_any_order():
    cells = np.array([[0, 0], [0, 1], [0, 0], [0, 1]], np.int32)
    patient = np.array(["a", "a", "b", "b"])
    probability = np.array([0.9, 0.9, 0.1, 0.1], np.float32)
    result = smoothed(probability, patient, cells, sigma_um=200.0)
    np.testing.assert_allclose(result, probability, atol=1e-6)
    order = np.array([2, 0, 3, 1])
    shuffled = smoothed(probability[order], patient[order], cells[order], sigma_um=200.0)
    np.testing.assert_array_equal(shuffled, result[order])


def test_a_certain_patch_does_not_outweigh_all_neighbors():
    probability = np.full(25, 0.01, np.float32)
    probability[12] = 1.0
    result = smoothed(probability, np.zeros(25), grid(5), sigma_um=400.0)
    assert np.isfinite(result).all()
    assert result[0] < 0.05


def test_smoothed_log_odds_are_weighted_by_distance_and_divided_by_the_temperature():
    cells = np.array([[0, 0], [0, 1]], np.int32)
    probability = np.array([0.9, 0.4], np.float32)
    result = smoothed(probability, np.zeros(2), cells, sigma_um=100.0, temperature=2.0)
    odds = np.log(probability / (1 - probability))
    weight = np.exp(-0.5 * (200.0 / 100.0) ** 2)
    expected = (odds + weight * odds[::-1]) / (1 + weight) / 2.0
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-expected)), atol=1e-3)
