import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.evaluations import TWO_PATIENTS, evaluation_of, patches
from wsi_idc.evaluation import charts
from wsi_idc.metrics.classification import ECE_BINS, ece
from wsi_idc.plotting.number_format import NONE

TWO = evaluation_of(TWO_PATIENTS)
# Dice is 1, 2/3, 0 and undefined; AUC is 1, 1, 0 and undefined.
FOUR = evaluation_of(
    patches(
        ("best", "0011", [0.1, 0.2, 0.8, 0.9]),
        ("middle", "0011", [0.1, 0.2, 0.3, 0.9]),
        ("weak", "01", [0.9, 0.1]),
        ("benign", "00", [0.1, 0.2]),
    )
)
ONE_CLASS = evaluation_of(patches(("a", "00", [0.1, 0.2])))


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_bins_are_those_of_the_ece():
    rng = np.random.default_rng(0)
    label, probability = rng.integers(0, 2, 500), rng.random(500).astype(np.float32)
    bins = charts.reliability_bins(label, probability, rng.integers(0, 9, 500))
    gap = (bins["probability"] - bins["idc_share"]).abs() * bins["patches"]
    assert gap.sum() / 500 == pytest.approx(ece(label, probability))
    assert (len(bins), bins["patches"].sum()) == (ECE_BINS, 500)
    assert ((bins["low"] <= bins["idc_share"]) & (bins["idc_share"] <= bins["high"])).all()


def test_a_bin_of_one_patient_has_no_interval():
    label, probability = np.array([0, 1, 1, 0]), np.array([0.01, 0.01, 1.0, 0.99])
    bins = charts.reliability_bins(label, probability, np.array(["a", "b", "b", "b"]))
    assert bins["patches"].tolist() == [2, *[0] * 13, 2]
    assert bins["probability"].tolist()[::14] == pytest.approx([0.01, 0.995])
    assert bins["idc_share"].tolist()[::14] == [0.5, 0.5]
    assert (bins["low"][0], bins["high"][0]) == (0, 1)
    assert bins.loc[14, ["low", "high"]].isna().all()
    assert bins.loc[1:13, "idc_share"].isna().all()


def test_the_confusion_matrix_has_counts_and_percentages_of_the_row():
    (ax,) = charts.confusion_matrix(TWO).axes
    assert texts(ax) == [
        *("3", "75.0 % of the row", "true negatives"),
        *("1", "25.0 % of the row", "false positives"),
        *("2", "40.0 % of the row", "false negatives"),
        *("3", "60.0 % of the row", "true positives"),
    ]
    (ax,) = charts.confusion_matrix(ONE_CLASS).axes
    assert texts(ax)[7::3] == [f"{NONE} of the row"] * 2


def test_the_operating_point_is_on_both_curves():
    roc, pr = charts.roc_and_pr(TWO).axes
    for ax, expected in ((roc, (0.25, 0.6)), (pr, (0.6, 0.75))):
        (point,) = [line for line in ax.lines if line.get_label() == "threshold 0.500"]
        assert (point.get_xdata()[0], point.get_ydata()[0]) == expected
        assert len(ax.collections) == 1  # the band
    (chance,) = [line for line in pr.lines if line.get_label() == "chance: prevalence 0.556"]
    assert set(chance.get_ydata()) == {5 / 9}


def test_curves_of_one_patient_have_no_bands_and_those_of_one_class_are_missing():
    for ax in charts.roc_and_pr(evaluation_of(patches(("a", "0101", [0.1, 0.2, 0.3, 0.4])))).axes:
        assert not ax.collections
        assert any(line.get_label() == "all patches" for line in ax.lines)
    for ax in charts.roc_and_pr(ONE_CLASS).axes:
        assert texts(ax) == ["needs patches of both classes"]


def test_reliability_names_the_errors_of_each_step():
    certain = TWO_PATIENTS["label"].astype(np.float32)
    smoothed = evaluation_of(TWO_PATIENTS.assign(probability_smoothed=certain))
    before = f"{TWO.final.metrics['ece']:.3f}"
    for evaluation, title in (
        (TWO, f"ECE {before}; {before} before calibration"),
        (smoothed, f"ECE 0.000; {before} before smoothing, {before} before calibration"),
    ):
        ax, counts = charts.reliability(evaluation).axes
        assert ax.get_title() == title
        assert sum(bar.get_height() for bar in counts.patches) == len(TWO_PATIENTS)


def test_probabilities_have_a_histogram_for_each_label():
    (ax,) = charts.probabilities(TWO).axes
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["labelled non-IDC (4)", "labelled IDC (5)", "threshold 0.500"]


def test_the_border_chart_has_each_metric_at_each_distance():
    (ax,) = charts.border(TWO).axes
    assert len(ax.texts) == 4 * 3
    assert texts(ax)[0] == f"{TWO.by_border[0].metrics['auc']:.3f}"
    names = [line.get_label() for line in ax.lines]
    assert "next to a patch of the other label (4 patches)" in names


def test_the_weakest_patients_come_first_and_are_named():
    for name, expected in (("auc", "weak best middle"), ("dice", "weak middle best")):
        assert charts.weakest_first(FOUR.patients, name)["patient"].tolist() == expected.split()
    figure = charts.patients(FOUR)
    auc, dice = figure.axes
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["mean of the patients", "95 % interval of the mean", "AUC of chance"]
    assert auc.get_ylim()[1] < 1.05 and auc.get_ylim()[0] <= 0
    assert texts(auc) == ["weakest:\nweak  0.00"]
    assert auc.get_title().startswith("AUC of 3 patients: mean 0.667")
    assert auc.get_title().endswith("median 1.000; 1 without a value")
    (marks,) = [marks for marks in dice.collections if len(marks.get_offsets()) == 3]
    assert marks.get_offsets()[:, 1].tolist() == pytest.approx([0, 2 / 3, 1])
    assert marks.get_sizes().tolist() == charts.marker_areas(np.array([2, 4, 4])).tolist()


def test_limits_of_agreement_are_those_of_the_evaluation():
    summary = FOUR.patient_summary["area_bias"]
    _, difference = charts.area_fraction(FOUR).axes
    places = {line.get_ydata()[0] for line in difference.lines}
    assert places == {0, summary["mean"], summary["agreement_low"], summary["agreement_high"]}
    # Of middle 1 patch of 4 is called and 2 are labelled IDC; the others do not differ.
    assert texts(difference) == ["middle"]
    bias = dict(zip(FOUR.patients["patient"], FOUR.patients["area_bias"], strict=True))
    assert bias == {"best": 0, "middle": -0.25, "weak": 0, "benign": 0}


def test_a_patient_without_values_and_limits_is_noted():
    for ax, name in zip(charts.patients(ONE_CLASS).axes, ("AUC", "Dice"), strict=True):
        assert texts(ax) == [f"no patient has a value of {name}"]
    _, difference = charts.area_fraction(ONE_CLASS).axes
    assert difference.get_title().endswith("too few patients for limits of agreement")
