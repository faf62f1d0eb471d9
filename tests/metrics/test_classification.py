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
    nan_to_none,
    records,
    threshold_metrics,
)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn(seed: int):
    rng = np.random.default_rng(seed)
    label = (rng.random(400) < 0.3).astype(np.int8)
    probability = np.clip(rng.normal(0.3 + 0.3 * label, 0.2), 0, 1).astype(np.float32)
    metrics = all_metrics(label, probability, threshold=0.45)
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
    assert tuple(metrics) == METRICS
    assert metrics.pop("ece") == pytest.approx(plain_ece(label, probability))
    assert metrics == pytest.approx(expected, abs=1e-7)
    (tn, fp), (fn, tp) = skm.confusion_matrix(label, called)
    counts = confusion(label, probability, threshold=0.45)
    assert tuple(vars(counts).values()) == (tp, fp, tn, fn)


def plain_ece(label: np.ndarray, probability: np.ndarray) -> float:
    total = 0.0
    for number in range(ECE_BINS):
        low, high = number / ECE_BINS, (number + 1) / ECE_BINS
        is_last = number == ECE_BINS - 1
        inside = (probability >= low) & ((probability <= 1) if is_last else (probability < high))
        if inside.any():
            gap = abs(probability[inside].mean(dtype=float) - label[inside].mean())
            total += inside.mean() * gap
    return total


def test_known_values():
    label = np.array([1, 0, 0, 0, 1, 1])
    probability = np.array([0.5, 0.5, 0.5, 0.5, 1.0, 1.0])
    # A quarter of the four patches at 0.5 is IDC; the two at 1.0 are right.
    assert ece(label, probability) == pytest.approx(4 / 6 * 0.25)
    # A probability at the threshold is called IDC.
    assert confusion(np.array([1]), np.array([0.5]), threshold=0.5).true_positive == 1
    # Equal probabilities rank by chance.
    assert auc(label, np.full(6, 0.3)) == average_precision(label, np.full(6, 0.3)) == 0.5


def test_undefined_metrics_are_nan():
    label, probability = np.zeros(3, np.int8), np.array([0.1, 0.2, 0.9])
    one_class = all_metrics(label, probability, threshold=0.5)
    for name in ("auc", "average_precision", "sensitivity", "balanced_accuracy", "mcc"):
        assert math.isnan(one_class[name]), name
    assert one_class["specificity"] == pytest.approx(2 / 3)
    assert one_class["f1"] == one_class["ppv"] == one_class["prevalence"] == 0
    assert one_class["npv"] == 1
    assert nan_to_none(one_class)["auc"] is None
    no_call = threshold_metrics(0, 0, 1, 1)
    assert (no_call["f1"], no_call["npv"]) == (0, 0.5)
    assert math.isnan(no_call["ppv"])
    no_patch = all_metrics(np.zeros(0, np.int8), np.zeros(0), threshold=0.5)
    assert all(math.isnan(value) for value in no_patch.values())


@pytest.mark.parametrize(
    ("label", "probability", "message"),
    [
        *(([0, 1], [0.5, bad], "probability is not within 0..1") for bad in (math.nan, -0.1, 1.1)),
        ([0, -1], [0.5, 0.5], "a label is not 0 or 1"),
        ([0, 1], [0.5], "2 labels, but 1 probabilities"),
    ],
)
def test_invalid_input_is_refused(label: list[int], probability: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        all_metrics(np.array(label), np.array(probability), threshold=0.5)


def test_records_have_none_for_nan():
    table = pd.DataFrame({"name": ["a", "b"], "auc": [0.5, math.nan]})
    assert records(table) == [{"name": "a", "auc": 0.5}, {"name": "b", "auc": None}]
