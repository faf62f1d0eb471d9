from functools import partial

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from wsi_idc.inference.calibration import (
    best_f1_threshold,
    best_youden_threshold,
    calibrate,
    choose_threshold,
    fit_temperature,
    idc_probability,
    sensitivity_threshold,
    smoothed_probability,
)
from wsi_idc.metrics.classification import ece
from wsi_idc.models.checkpoint import Smoothing


def test_a_known_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (20_000, 2))
    chance = idc_probability(logit, temperature=1.0)
    label = (rng.random(len(logit)) < chance).astype(np.int64)
    temperature = fit_temperature(logit * 2.5, label)
    assert temperature == pytest.approx(2.5, rel=0.03)
    before = ece(label, idc_probability(logit * 2.5, temperature=1.0))
    assert ece(label, idc_probability(logit * 2.5, temperature=temperature)) < before / 5


def test_probability_is_the_softmax_of_the_scaled_logits():
    logit = np.array([[0.0, 2.0], [1.0, -1.0]], np.float32)
    expected = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))]
    assert idc_probability(logit, temperature=2.0).tolist() == pytest.approx(expected)
    assert idc_probability(logit, temperature=2.0).dtype == np.float32


def test_large_logits_do_not_overflow():
    assert idc_probability(np.array([[-1e4, 1e4]]), temperature=0.1).tolist() == [1.0]


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 200)
    return label, np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)


@pytest.mark.parametrize(
    ("choose", "score"),
    [(best_f1_threshold, f1_score), (best_youden_threshold, balanced_accuracy_score)],
)
def test_the_threshold_is_the_best_of_all(scored: tuple[np.ndarray, np.ndarray], choose, score):
    label, probability = scored
    threshold = choose(label, probability)
    best = max(score(label, probability >= value) for value in probability)
    assert score(label, probability >= threshold) == pytest.approx(best)
    assert np.abs(probability - threshold).min() > 0  # between two patches, on none


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
def test_a_wanted_sensitivity_is_reached_at_the_largest_threshold(
    scored: tuple[np.ndarray, np.ndarray], target: float
):
    label, probability = scored
    threshold = sensitivity_threshold(label, probability, target=target)
    assert recall_score(label, probability >= threshold) >= target
    higher = probability[probability > threshold].min() + 1e-9
    assert recall_score(label, probability >= higher) < target
    chosen = choose_threshold(label, probability, threshold_by="f1", target_sensitivity=target)
    assert chosen == threshold


def test_the_rule_is_the_configurations(scored: tuple[np.ndarray, np.ndarray]):
    choose = partial(choose_threshold, *scored, target_sensitivity=0.0)
    assert choose(threshold_by="f1") == best_f1_threshold(*scored)
    assert choose(threshold_by="youden") == best_youden_threshold(*scored)


def test_equal_probabilities_have_a_threshold_below_them():
    label, probability = np.array([0, 1, 1]), np.full(3, 0.3)
    for choose in (best_f1_threshold, best_youden_threshold):
        assert choose(label, probability) == pytest.approx(0.15)


def grid(side: int) -> np.ndarray:
    return np.argwhere(np.ones((side, side))).astype(np.int32)


def test_noise_over_regions_is_smoothed_and_noise_over_noise_is_not():
    rng = np.random.default_rng(0)
    cells, patient = grid(40), np.zeros(1600, int)
    region = ((cells[:, 0] // 10 + cells[:, 1] // 10) % 2).astype(np.int64)
    scattered = rng.permutation(region)
    found = {}
    for name, label in (("region", region), ("scattered", scattered)):
        odds = rng.normal(2.0 * (2 * label - 1), 2.0)
        logit = np.stack([np.zeros_like(odds), odds], axis=1)
        found[name] = calibrate(logit, label, patient, cells, patch_um=200.0)
        probability = idc_probability(logit, temperature=found[name].temperature)
        smoothed = smoothed_probability(
            probability, patient, cells, smoothing=found[name].smoothing, patch_um=200.0
        )
        right = ((smoothed >= found[name].smoothing.threshold) == label).mean()
        raw = ((probability >= found[name].threshold) == label).mean()
        assert right > raw + 0.05 if name == "region" else right == pytest.approx(raw, abs=0.01)
    assert found["region"].smoothing.sigma_um > 100
    assert found["scattered"].smoothing.sigma_um < 60


def test_smoothing_stays_within_a_patient():
    cells = np.array([[0, 0], [0, 1], [0, 0], [0, 1]], np.int32)
    patient = np.array(["a", "a", "b", "b"])
    how = Smoothing(sigma_um=200.0, temperature=1.0, threshold=0.5)
    probability = np.array([0.9, 0.9, 0.1, 0.1], np.float32)
    found = smoothed_probability(probability, patient, cells, smoothing=how, patch_um=200.0)
    np.testing.assert_allclose(found, probability, atol=1e-6)
    # The order of the patches is nobody's business.
    order = np.array([2, 0, 3, 1])
    again = smoothed_probability(
        probability[order], patient[order], cells[order], smoothing=how, patch_um=200.0
    )
    np.testing.assert_array_equal(again, found[order])


def test_a_certain_patch_does_not_outweigh_all_neighbours():
    how = Smoothing(sigma_um=400.0, temperature=1.0, threshold=0.5)
    probability = np.full(25, 0.01, np.float32)
    probability[12] = 1.0
    found = smoothed_probability(probability, np.zeros(25), grid(5), smoothing=how, patch_um=200.0)
    assert np.isfinite(found).all()
    assert found[0] < 0.05


def test_smoothed_log_odds_are_weighed_by_distance_and_divided_by_the_temperature():
    cells = np.array([[0, 0], [0, 1]], np.int32)
    how = Smoothing(sigma_um=100.0, temperature=2.0, threshold=0.5)
    probability = np.array([0.9, 0.4], np.float32)
    found = smoothed_probability(probability, np.zeros(2), cells, smoothing=how, patch_um=200.0)
    odds = np.log(probability / (1 - probability))
    near = np.exp(-0.5 * (200.0 / 100.0) ** 2)
    expected = (odds + near * odds[::-1]) / (1 + near) / 2.0
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected)), atol=1e-3)


def test_a_share_that_is_a_whole_number_of_patches_may_be_missed():
    probability = np.arange(1, 11) / 11  # a tenth of 10 is 0.9999999999999998
    threshold = sensitivity_threshold(np.ones(10, int), probability, target=0.9)
    assert (probability < threshold).sum() == 1


def test_the_threshold_of_the_smoothed_is_on_its_tempered_probability():
    rng = np.random.default_rng(1)
    cells, label = grid(20), ((grid(20)[:, 0] // 10) % 2).astype(np.int64)
    odds = rng.normal(1.0 * (2 * label - 1), 2.0)
    logit = np.stack([np.zeros_like(odds), odds], axis=1)
    found = calibrate(logit, label, np.zeros(400), cells, patch_um=200.0)
    smoothed = smoothed_probability(
        idc_probability(logit, temperature=found.temperature),
        np.zeros(400),
        cells,
        smoothing=found.smoothing,
        patch_um=200.0,
    )
    assert found.smoothing.temperature != pytest.approx(1, abs=0.05)
    assert found.smoothing.threshold == pytest.approx(
        choose_threshold(label, smoothed, threshold_by="f1", target_sensitivity=0.0), abs=1e-6
    )
