import time

import numpy as np
import pytest

from wsi_idc.core.metric_table import METRICS
from wsi_idc.metrics.bootstrap import (
    interval,
    resample_patients,
    resampled_metrics,
    roc_and_pr_bands,
)
from wsi_idc.metrics.classification import all_metrics


def draw_predictions(num: int = 300, num_patients: int = 7) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    label = (rng.random(num) < 0.3).astype(np.int8)
    probability = np.clip(rng.normal(0.3 + 0.3 * label, 0.2), 0, 1)
    return label, probability.astype(np.float32), rng.integers(0, num_patients, num)


def test_resample_draws_as_many_patients_as_there_are():
    weights = resample_patients(5, seed=3, num_resamples=40)
    assert weights.shape == (40, 5)
    assert (weights.sum(axis=1) == 5).all()
    assert len(np.unique(weights, axis=0)) > 20
    drawn = np.random.default_rng(3).integers(5, size=(40, 5))
    assert weights[7].tolist() == np.bincount(drawn[7], minlength=5).tolist()


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_equal_those_of_a_plain_bootstrap(ties: bool):
    label, probability, code = draw_predictions()
    probability = probability.round(1) if ties else probability
    weights = resample_patients(7, seed=4, num_resamples=60)
    actual = resampled_metrics(label, probability, code, threshold=0.45, weights=weights)
    plain = []
    for patients in np.random.default_rng(4).integers(7, size=(60, 7)):
        rows = np.concatenate([np.flatnonzero(code == patient) for patient in patients])
        plain.append(all_metrics(label[rows], probability[rows], threshold=0.45))
    for name in METRICS:
        expected = [metrics[name] for metrics in plain]
        np.testing.assert_allclose(actual[name], expected, atol=1e-6, err_msg=name)
        low, high = np.percentile(expected, [2.5, 97.5])
        assert interval(actual[name]) == pytest.approx((low, high), abs=1e-6)


def test_resample_of_one_class_has_no_auc_but_a_specificity():
    label, probability = np.array([0, 0, 1]), np.array([0.2, 0.6, 0.7], np.float32)
    code, weights = np.array([0, 0, 1]), np.array([[2, 0], [0, 2], [1, 1]])
    metrics = resampled_metrics(label, probability, code, threshold=0.5, weights=weights)
    np.testing.assert_array_equal(metrics["auc"], [np.nan, np.nan, 1])
    np.testing.assert_array_equal(metrics["average_precision"], [np.nan, np.nan, 1])
    np.testing.assert_array_equal(metrics["specificity"], [0.5, np.nan, 0.5])
    assert interval(metrics["auc"]) == (1, 1)
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()


def test_resamples_of_the_published_test_set_take_seconds():
    label, probability, code = draw_predictions(51_439, 49)
    weights = resample_patients(49, seed=0)
    started = time.process_time()
    metrics = resampled_metrics(label, probability, code, threshold=0.5, weights=weights)
    # A loop over scikit-learn's functions takes minutes.
    assert time.process_time() - started < 20
    assert len(metrics["auc"]) == 2000
    assert metrics["auc"].std() > 0


def test_curves_of_a_known_ranking():
    label = np.array([1, 0, 1, 0])
    probability = np.array([0.9, 0.8, 0.7, 0.1], np.float32)
    roc, pr = roc_and_pr_bands(label, probability, np.arange(4), weights=np.zeros((0, 4), int))
    at = {round(x, 2): (y, p) for x, y, p in zip(roc.x, roc.y, pr.y, strict=True)}
    assert at[0.0] == (0.5, 1.0)  # one of two positives without a false positive
    assert at[0.5][0] == 1.0
    assert at[0.25][0] == 0.5  # flat up to the false positive, then up
    assert at[0.5][1] == 1.0
    assert at[0.51][1] == pytest.approx(2 / 3)
    assert np.isnan(roc.low).all()


def test_bands_equal_those_of_plain_resamples():
    label, probability, code = draw_predictions()
    weights = resample_patients(7, seed=0, num_resamples=30)
    bands = roc_and_pr_bands(label, probability, code, weights=weights)
    no_weights = np.zeros((0, 7), int)
    resampled = [np.repeat(np.arange(len(code)), weight[code]) for weight in weights]
    plain = [
        roc_and_pr_bands(label[rows], probability[rows], code[rows], weights=no_weights)
        for rows in resampled
    ]
    for band, bands_of_curve in zip(bands, zip(*plain, strict=True), strict=True):
        curves = np.stack([curve.y for curve in bands_of_curve])
        np.testing.assert_allclose(band.low, np.percentile(curves, 2.5, axis=0), atol=1e-9)
        np.testing.assert_allclose(band.high, np.percentile(curves, 97.5, axis=0), atol=1e-9)
    assert roc_and_pr_bands(np.zeros(3, int), np.ones(3), np.arange(3), weights=weights) is None
