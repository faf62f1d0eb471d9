import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from tests.evaluations import evaluation_of, patches
from wsi_idc.evaluation.charts import (
    border,
    confusion_matrix,
    probabilities,
    reliability,
    reliability_bins,
    roc_and_pr,
)
from wsi_idc.metrics.classification import ECE_BINS, ece
from wsi_idc.plotting.number_format import NONE

TABLE = pd.concat(
    [patches("a", "00011", [0.1, 0.6, 0.2, 0.9, 0.3]), patches("b", "0111", [0.4, 0.8, 0.7, 0.2])],
    ignore_index=True,
)
TWO = evaluation_of(TABLE)


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_bins_are_those_of_the_ece():
    rng = np.random.default_rng(0)
    label, probability = rng.integers(0, 2, 500), rng.random(500).astype(np.float32)
    bins = reliability_bins(label, probability, rng.integers(0, 9, 500))
    gap = (bins["probability"] - bins["idc_share"]).abs() * bins["patches"]
    assert gap.sum() / 500 == pytest.approx(ece(label, probability))
    assert (len(bins), bins["patches"].sum()) == (ECE_BINS, 500)
    assert ((bins["low"] <= bins["idc_share"]) & (bins["idc_share"] <= bins["high"])).all()


def test_a_bin_of_one_patient_has_no_interval():
    label, probability = np.array([0, 1, 1, 0]), np.array([0.01, 0.01, 1.0, 0.99])
    bins = reliability_bins(label, probability, np.array(["a", "b", "b", "b"]))
    assert bins["patches"].tolist() == [2, *[0] * 13, 2]
    assert bins["probability"].tolist()[::14] == pytest.approx([0.01, 0.995])
    assert bins["idc_share"].tolist()[::14] == [0.5, 0.5]
    assert (bins["low"][0], bins["high"][0]) == (0, 1)
    assert bins.loc[14, ["low", "high"]].isna().all()
    assert bins.loc[1:13, "idc_share"].isna().all()


def test_the_confusion_matrix_has_counts_and_percentages_of_the_row():
    (ax,) = confusion_matrix(TWO).axes
    assert texts(ax) == [
        *("3", "75.0 % of the row", "true negatives"),
        *("1", "25.0 % of the row", "false positives"),
        *("2", "40.0 % of the row", "false negatives"),
        *("3", "60.0 % of the row", "true positives"),
    ]
    (ax,) = confusion_matrix(evaluation_of(patches("a", "00", [0.1, 0.2]))).axes
    assert texts(ax)[7::3] == [f"{NONE} of the row"] * 2


def test_the_operating_point_is_on_both_curves():
    roc, pr = roc_and_pr(TWO).axes
    for ax, expected in ((roc, (0.25, 0.6)), (pr, (0.6, 0.75))):
        (point,) = [line for line in ax.lines if line.get_label() == "threshold 0.500"]
        assert (point.get_xdata()[0], point.get_ydata()[0]) == expected
        assert len(ax.collections) == 1  # the band
    (chance,) = [line for line in pr.lines if line.get_label() == "chance: prevalence 0.556"]
    assert set(chance.get_ydata()) == {5 / 9}


def test_curves_of_one_patient_have_no_bands():
    for ax in roc_and_pr(evaluation_of(patches("a", "0101", [0.1, 0.2, 0.3, 0.4]))).axes:
        assert not ax.collections
        assert any(line.get_label() == "all patches" for line in ax.lines)


def test_curves_of_one_class_are_missing():
    for ax in roc_and_pr(evaluation_of(patches("a", "000", [0.1, 0.2, 0.3]))).axes:
        assert texts(ax) == ["needs patches of both classes"]


def test_reliability_names_the_errors_of_each_step():
    smoothed = evaluation_of(TABLE.assign(probability_smoothed=TABLE["label"].astype(np.float32)))
    before = f"{TWO.final.metrics['ece']:.3f}"
    for evaluation, title in (
        (TWO, f"ECE {before}; {before} before calibration"),
        (smoothed, f"ECE 0.000; {before} before smoothing, {before} before calibration"),
    ):
        ax, counts = reliability(evaluation).axes
        assert ax.get_title() == title
        assert sum(bar.get_height() for bar in counts.patches) == len(TABLE)


def test_probabilities_have_a_histogram_for_each_label():
    (ax,) = probabilities(TWO).axes
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["labelled non-IDC (4)", "labelled IDC (5)", "threshold 0.500"]


def test_the_border_chart_has_each_metric_at_each_distance():
    (ax,) = border(TWO).axes
    assert len(ax.texts) == 4 * 3
    assert texts(ax)[0] == f"{TWO.by_border[0].metrics['auc']:.3f}"
    names = [line.get_label() for line in ax.lines]
    assert "next to a patch of the other label (4 patches)" in names
