import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as skm

from wsi_idc.core.metric_table import METRICS
from wsi_idc.metrics.classification import (
    ECE_BINS,
    all_metrics,
    auc,
    average_precision,
    confusion,
    ece,
    or_none,
    records,
    threshold_metrics,
)


def world(count: int = 400, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < 0.3).astype(np.int8)
    probability = np.clip(rng.normal(0.3 + 0.3 * label, 0.2), 0, 1).astype(np.float32)
    return label, probability


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed: int):
    label, probability = world(seed=seed)
    found = all_metrics(label, probability, threshold=0.45)
    called = probability >= 0.45
    expected = {
        "auc": skm.roc_auc_score(label, probability),
        "average_precision": skm.average_precision_score(label, probability),
        "balanced_accuracy": skm.balanced_accuracy_score(label, called),
        "f1": skm.f1_score(label, called),
        "sensitivity": skm.recall_score(label, called),
        "specificity": skm.recall_score(label, called, pos_label=0),
        "ppv": skm.precision_score(label, called),
        "npv": skm.precision_score(label, called, pos_label=0),
        "accuracy": skm.accuracy_score(label, called),
        "mcc": skm.matthews_corrcoef(label, called),
        "brier": skm.brier_score_loss(label, probability),
        "prevalence": label.mean(),
    }
    assert tuple(found) == METRICS
    ours = found.pop("ece")
    assert found == pytest.approx(expected, abs=1e-7)
    assert ours == pytest.approx(plain_ece(label, probability))
    (tn, fp), (fn, tp) = skm.confusion_matrix(label, called)
    counts = confusion(label, probability, threshold=0.45)
    assert tuple(vars(counts).values()) == (tp, fp, tn, fn)


def plain_ece(label: np.ndarray, probability: np.ndarray) -> float:
    total = 0.0
    for number in range(ECE_BINS):
        low, high = number / ECE_BINS, (number + 1) / ECE_BINS
        last = number == ECE_BINS - 1
        inside = (probability >= low) & ((probability <= 1) if last else (probability < high))
        if inside.any():
            gap = abs(probability[inside].mean(dtype=float) - label[inside].mean())
            total += inside.mean() * gap
    return total


def test_a_known_calibration_error():
    label = np.array([1, 0, 0, 0, 1, 1])
    probability = np.array([0.5, 0.5, 0.5, 0.5, 1.0, 1.0])
    # A quarter of the four is IDC, not a half; the two are as sure as they should be.
    assert ece(label, probability) == pytest.approx(4 / 6 * 0.25)


def test_a_probability_at_the_threshold_is_called_idc():
    counts = confusion(np.array([1]), np.array([0.5]), threshold=0.5)
    assert counts.true_positive == 1


def test_one_class_has_no_auc_and_no_sensitivity():
    label, probability = np.zeros(3, np.int8), np.array([0.1, 0.2, 0.9])
    found = all_metrics(label, probability, threshold=0.5)
    for name in ("auc", "average_precision", "sensitivity", "balanced_accuracy", "mcc"):
        assert math.isnan(found[name]), name
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["f1"] == found["ppv"] == found["prevalence"] == 0
    assert found["npv"] == 1
    assert or_none(found)["auc"] is None


def test_no_patch_at_all_has_no_metric():
    found = all_metrics(np.zeros(0, np.int8), np.zeros(0), threshold=0.5)
    assert all(math.isnan(value) for value in found.values())


def test_equal_probabilities_are_a_coin():
    label = np.array([0, 1, 1, 0])
    assert auc(label, np.full(4, 0.3)) == 0.5
    assert average_precision(label, np.full(4, 0.3)) == 0.5


def test_no_call_at_all_has_an_f1_of_zero_and_no_ppv():
    found = threshold_metrics(0, 0, 1, 1)
    assert found["f1"] == 0
    assert math.isnan(found["ppv"])
    assert found["npv"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_what_is_no_probability_is_refused(bad: float):
    with pytest.raises(ValueError, match="not all within 0 and 1"):
        all_metrics(np.array([0, 1]), np.array([0.5, bad]), threshold=0.5)


def test_what_is_no_label_is_refused():
    with pytest.raises(ValueError, match="not all 0 or 1"):
        all_metrics(np.array([0, -1]), np.array([0.5, 0.5]), threshold=0.5)


def test_records_say_null_for_what_is_undefined():
    table = pd.DataFrame({"name": ["a", "b"], "auc": [0.5, math.nan]})
    assert records(table) == [{"name": "a", "auc": 0.5}, {"name": "b", "auc": None}]
