import numpy as np
import pandas as pd
import pytest

from tests.evaluations import evaluation_of, patches
from wsi_idc.evaluation.patient_charts import area_fraction, marker_areas, patients, weakest_first

# Dice 1, 2/3, 0 and of one class only; AUC 1, 1, 0 and none.
FOUR = pd.concat(
    [
        patches("best", "0011", [0.1, 0.2, 0.8, 0.9]),
        patches("middle", "0011", [0.1, 0.2, 0.3, 0.9]),
        patches("weak", "01", [0.9, 0.1]),
        patches("benign", "00", [0.1, 0.2]),
    ],
    ignore_index=True,
)


def test_the_weakest_come_first_and_those_without_a_value_not_at_all():
    table = evaluation_of(FOUR).patients
    assert weakest_first(table, "auc")["patient"].tolist() == ["weak", "best", "middle"]
    assert weakest_first(table, "dice")["patient"].tolist() == ["weak", "middle", "best"]


def test_the_strip_names_the_weakest():
    auc, dice = patients(evaluation_of(FOUR)).axes
    assert [text.get_text() for text in auc.texts] == ["weakest:\nweak  0.00"]
    assert auc.get_title().startswith("AUC of 3 patients: mean 0.667")
    assert auc.get_title().endswith("median 1.000; 1 without a value")
    (marks,) = [one for one in dice.collections if len(one.get_offsets()) == 3]
    assert marks.get_offsets()[:, 1].tolist() == pytest.approx([0, 2 / 3, 1])
    assert marks.get_sizes().tolist() == marker_areas(np.array([2, 4, 4])).tolist()


def test_no_value_is_said():
    auc, dice = patients(evaluation_of(patches("a", "00", [0.1, 0.2]))).axes
    assert auc.texts[0].get_text() == "no patient has a value of AUC"
    assert dice.texts[0].get_text() == "no patient has a value of Dice"


def test_limits_of_agreement_are_those_of_the_evaluation():
    evaluation = evaluation_of(FOUR)
    spread = evaluation.patient_summary["area_bias"]
    _, difference = area_fraction(evaluation).axes
    drawn = {line.get_ydata()[0] for line in difference.lines}
    assert drawn == {0, spread["mean"], spread["agreement_low"], spread["agreement_high"]}
    # middle is called 1 of 4 and labelled 2 of 4, and nobody else differs.
    assert [text.get_text() for text in difference.texts] == ["middle"]
    assert evaluation.patients.set_index("patient")["area_bias"].to_dict() == {
        "best": 0,
        "middle": -0.25,
        "weak": 0,
        "benign": 0,
    }


def test_one_patient_has_no_limits():
    _, difference = area_fraction(evaluation_of(patches("a", "01", [0.9, 0.9]))).axes
    assert difference.get_title().endswith("too few patients for limits of agreement")
