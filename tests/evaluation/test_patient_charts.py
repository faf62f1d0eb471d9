import numpy as np
import pandas as pd
import pytest

from tests.evaluations import evaluation_of, patches
from wsi_idc.evaluation.patient_charts import area_fraction, marker_areas, patients, weakest_first

# Dice is 1, 2/3, 0 and undefined; AUC is 1, 1, 0 and undefined.
FOUR = evaluation_of(
    pd.concat(
        [
            patches("best", "0011", [0.1, 0.2, 0.8, 0.9]),
            patches("middle", "0011", [0.1, 0.2, 0.3, 0.9]),
            patches("weak", "01", [0.9, 0.1]),
            patches("benign", "00", [0.1, 0.2]),
        ],
        ignore_index=True,
    )
)


def test_the_weakest_come_first_and_patients_without_a_value_are_left_out():
    table = FOUR.patients
    assert weakest_first(table, "auc")["patient"].tolist() == ["weak", "best", "middle"]
    assert weakest_first(table, "dice")["patient"].tolist() == ["weak", "middle", "best"]


def test_the_weakest_patients_are_named():
    auc, dice = patients(FOUR).axes
    assert [text.get_text() for text in auc.texts] == ["weakest:\nweak  0.00"]
    assert auc.get_title().startswith("AUC of 3 patients: mean 0.667")
    assert auc.get_title().endswith("median 1.000; 1 without a value")
    (marks,) = [marks for marks in dice.collections if len(marks.get_offsets()) == 3]
    assert marks.get_offsets()[:, 1].tolist() == pytest.approx([0, 2 / 3, 1])
    assert marks.get_sizes().tolist() == marker_areas(np.array([2, 4, 4])).tolist()


def test_limits_of_agreement_are_those_of_the_evaluation():
    summary = FOUR.patient_summary["area_bias"]
    _, difference = area_fraction(FOUR).axes
    places = {line.get_ydata()[0] for line in difference.lines}
    assert places == {0, summary["mean"], summary["agreement_low"], summary["agreement_high"]}
    # Of middle 1 patch of 4 is called and 2 are labelled IDC; the others do not differ.
    assert [text.get_text() for text in difference.texts] == ["middle"]
    bias = dict(zip(FOUR.patients["patient"], FOUR.patients["area_bias"], strict=True))
    assert bias == {"best": 0, "middle": -0.25, "weak": 0, "benign": 0}


def test_a_patient_without_values_and_limits_is_noted():
    evaluation = evaluation_of(patches("a", "00", [0.1, 0.2]))
    for ax, name in zip(patients(evaluation).axes, ("AUC", "Dice"), strict=True):
        assert ax.texts[0].get_text() == f"no patient has a value of {name}"
    _, difference = area_fraction(evaluation).axes
    assert difference.get_title().endswith("too few patients for limits of agreement")
