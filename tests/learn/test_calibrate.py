import numpy as np
import pytest
from sklearn.metrics import f1_score

from wsi_idc.learn.calibrate import best_f1_threshold, fit_temperature, idc_probability


def test_a_known_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (20_000, 2))
    chance = idc_probability(logit, temperature=1.0)
    label = (rng.random(len(logit)) < chance).astype(np.int64)
    assert fit_temperature(logit * 2.5, label) == pytest.approx(2.5, rel=0.03)


def test_probability_is_the_softmax_of_the_scaled_logits():
    logit = np.array([[0.0, 2.0], [1.0, -1.0]], np.float32)
    expected = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))]
    assert idc_probability(logit, temperature=2.0).tolist() == pytest.approx(expected)
    assert idc_probability(logit, temperature=2.0).dtype == np.float32


def test_large_logits_do_not_overflow():
    assert idc_probability(np.array([[-1e4, 1e4]]), temperature=0.1).tolist() == [1.0]


def test_the_threshold_has_the_largest_f1_of_all():
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 200)
    probability = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)
    threshold = best_f1_threshold(label, probability)
    best = max(f1_score(label, probability >= value) for value in probability)
    assert f1_score(label, probability >= threshold) == pytest.approx(best)
    assert np.abs(probability - threshold).min() > 0  # between two patches, on none
