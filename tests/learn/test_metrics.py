import math

import numpy as np
import pytest
from sklearn import metrics as skm

from wsi_idc.learn.metrics import (
    all_metrics,
    auc,
    average_precision,
    confusion,
    patient_bootstrap,
    threshold_metrics,
)


def world(count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    label = (rng.random(count) < 0.3).astype(np.int8)
    probability = np.clip(rng.normal(0.3 + 0.3 * label, 0.2), 0, 1).astype(np.float32)
    return label, probability, rng.integers(0, 12, count)


def test_metrics_are_those_of_scikit_learn():
    label, probability, _ = world()
    found = all_metrics(label, probability, threshold=0.45)
    called = probability >= 0.45
    assert found["auc"] == pytest.approx(skm.roc_auc_score(label, probability))
    assert found["average_precision"] == pytest.approx(
        skm.average_precision_score(label, probability)
    )
    assert found["f1"] == pytest.approx(skm.f1_score(label, called))
    assert found["sensitivity"] == pytest.approx(skm.recall_score(label, called))
    assert found["specificity"] == pytest.approx(skm.recall_score(label, called, pos_label=0))
    assert found["balanced_accuracy"] == pytest.approx(skm.balanced_accuracy_score(label, called))
    assert found["prevalence"] == label.mean()
    counts = confusion(label, probability, threshold=0.45)
    (tn, fp), (fn, tp) = skm.confusion_matrix(label, called)
    assert (counts.true_negative, counts.false_positive) == (tn, fp)
    assert (counts.false_negative, counts.true_positive) == (fn, tp)


def test_a_probability_at_the_threshold_is_called_idc():
    counts = confusion(np.array([1]), np.array([0.5]), threshold=0.5)
    assert counts.true_positive == 1


def test_one_class_has_no_auc_and_no_sensitivity():
    label, probability = np.zeros(3, np.int8), np.array([0.1, 0.2, 0.9])
    found = all_metrics(label, probability, threshold=0.5)
    for name in ("auc", "average_precision", "sensitivity", "balanced_accuracy"):
        assert math.isnan(found[name])
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["f1"] == 0


def test_equal_probabilities_are_a_coin():
    label = np.array([0, 1, 1, 0])
    assert auc(label, np.full(4, 0.3)) == 0.5
    assert average_precision(label, np.full(4, 0.3)) == 0.5


def test_no_call_at_all_has_an_f1_of_zero():
    counts = confusion(np.array([0, 1]), np.array([0.1, 0.2]), threshold=0.9)
    assert threshold_metrics(counts)["f1"] == 0


def test_the_interval_is_that_of_a_plain_bootstrap():
    label, probability, patient = world()
    low, high = patient_bootstrap(auc, label, probability, patient, seed=4, num_resamples=50)
    rng = np.random.default_rng(4)
    codes = np.unique(patient)
    values = []
    for _ in range(50):
        drawn = codes[rng.integers(len(codes), size=len(codes))]
        rows = np.concatenate([np.flatnonzero(patient == code) for code in drawn])
        values.append(skm.roc_auc_score(label[rows], probability[rows]))
    assert (low, high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert low < auc(label, probability) < high


def test_one_patient_gives_an_interval_of_no_width():
    label, probability, _ = world()
    low, high = patient_bootstrap(
        auc, label, probability, np.zeros(len(label), int), num_resamples=5
    )
    assert low == high == pytest.approx(auc(label, probability))


def test_one_class_gives_no_interval():
    low, high = patient_bootstrap(auc, np.zeros(4, int), np.ones(4), np.arange(4), num_resamples=3)
    assert math.isnan(low)
    assert math.isnan(high)
