import numpy as np
import pandas as pd
import pytest

from wsi_idc.metrics.patients import border_distances, patient_table, summary


def predictions() -> pd.DataFrame:
    """Return patient A, a row of six patches with four of IDC, and B without any IDC."""
    patient, label = np.array(list("AAAAAABB")), np.array([1, 1, 1, 1, 0, 0, 0, 0])
    cells = np.array([[0, col] for col in (0, 1, 2, 3, 4, 5, 0, 1)], np.int32)
    table = pd.DataFrame({"patient": patient, "label": label})
    return table.assign(
        probability=[0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.3, 0.4],
        border_distance=border_distances(label, patient, cells),
    )


def test_distances_stay_within_a_patient():
    assert predictions()["border_distance"].tolist() == [2, 2, 1, 0, 0, 1, 2, 2]


def test_metrics_of_a_patients_region():
    table = patient_table(predictions(), "probability", threshold=0.5).set_index("patient")
    a, b = table.loc["A"], table.loc["B"]
    areas = a[["area_true", "area_predicted", "area_bias"]].tolist()
    assert areas == pytest.approx([4 / 6, 4 / 6, 0])
    assert a[["dice", "auc"]].tolist() == pytest.approx([2 * 3 / (4 + 4), 7 / 8])
    assert a[["sensitivity", "specificity", "ppv"]].tolist() == [0.75, 0.5, 0.75]
    assert a[["patches", "border0_patches"]].tolist() == [6, 2]
    # At the border the patch of IDC is missed, the other one is called.
    assert a[["border0_dice", "border0_auc", "border0_area_bias"]].tolist() == [0, 0, 0]
    assert a[["border1_dice", "border2_area_true", "border2_area_predicted"]].tolist() == [1, 1, 1]
    strict = patient_table(predictions(), "probability", threshold=0.85).set_index("patient")
    assert strict.loc["A", "area_bias"] == pytest.approx(1 / 6 - 4 / 6)
    assert b[["area_predicted", "area_true", "border0_patches"]].tolist() == [0, 0, 0]
    # Without true or called patches there is no region to compare.
    assert b[["auc", "dice", "border0_area_true"]].isna().all()


def test_table_uses_the_given_column():
    table = predictions()
    table["probability_smoothed"] = 1 - table["probability"]
    patients = patient_table(table, "probability_smoothed", threshold=0.5)
    assert patients["auc"].iloc[0] == pytest.approx(1 / 8)


def test_summary_gives_each_patient_the_same_weight():
    patients = pd.DataFrame(
        {"auc": [0.6, 0.8, np.nan], "dice": [np.nan] * 3, "area_bias": [0.1, -0.1, 0.3]}
    )
    weights = np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0], [0, 0, 3]])
    result = summary(patients, weights)
    assert "dice" not in result
    # The means of the resamples are 0.7, 0.6 and 0.8; the fourth has none.
    low = np.percentile([0.6, 0.7, 0.8], 2.5)
    auc, bias = result["auc"], result["area_bias"]
    assert (auc["patients"], auc["mean"], auc["low"]) == pytest.approx((2, 0.7, low))
    limits = [bias[name] for name in ("mean", "agreement_high", "mean_absolute")]
    assert limits == pytest.approx([0.1, 0.1 + 1.96 * 0.2, 0.5 / 3])
