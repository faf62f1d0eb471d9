import numpy as np
import pandas as pd
import pytest

from wsi_idc.metrics.patients import border_distances, patient_table, summary


def predictions() -> pd.DataFrame:
    """Return patient A, a row of six patches with four of IDC, and B without any IDC."""
    label = [1, 1, 1, 1, 0, 0, 0, 0]
    table = pd.DataFrame(
        {
            "patient": list("AAAAAABB"),
            "label": label,
            "probability": [0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.3, 0.4],
        }
    )
    cells = np.array([[0, col] for col in (0, 1, 2, 3, 4, 5, 0, 1)], np.int32)
    table["border_distance"] = border_distances(np.array(label), table["patient"].to_numpy(), cells)
    return table


def test_distances_stay_within_a_patient():
    assert predictions()["border_distance"].tolist() == [2, 2, 1, 0, 0, 1, 2, 2]


def test_metrics_of_a_patients_region():
    table = patient_table(predictions(), "probability", threshold=0.5).set_index("patient")
    a, b = table.loc["A"], table.loc["B"]
    assert a["patches"] == 6
    assert a["area_true"] == pytest.approx(4 / 6)
    assert a["area_predicted"] == pytest.approx(4 / 6)
    assert a["area_bias"] == pytest.approx(0)
    assert a["dice"] == pytest.approx(2 * 3 / (4 + 4))
    assert a["auc"] == pytest.approx(7 / 8)
    assert (a["sensitivity"], a["specificity"], a["ppv"]) == (0.75, 0.5, 0.75)
    assert a["border0_patches"] == 2
    assert a["border0_dice"] == 0  # the patch of IDC is missed, the other one is called
    assert a["border0_auc"] == 0
    assert a["border0_area_bias"] == 0
    assert a["border1_dice"] == 1
    assert (a["border2_area_true"], a["border2_area_predicted"]) == (1, 1)
    assert b["area_predicted"] == b["area_true"] == 0
    strict = patient_table(predictions(), "probability", threshold=0.85).set_index("patient")
    assert strict.loc["A", "area_bias"] == pytest.approx(1 / 6 - 4 / 6)
    assert np.isnan(b["auc"])
    assert np.isnan(b["dice"])  # neither true nor called patches: no region to compare
    assert b["border0_patches"] == 0
    assert np.isnan(b["border0_area_true"])


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
    assert result["auc"]["patients"] == 2
    assert result["auc"]["mean"] == pytest.approx(0.7)
    # The means of the resamples are 0.7, 0.6 and 0.8; the fourth has none.
    assert result["auc"]["low"] == pytest.approx(np.percentile([0.6, 0.7, 0.8], 2.5))
    assert result["area_bias"]["mean"] == pytest.approx(0.1)
    assert result["area_bias"]["agreement_high"] == pytest.approx(0.1 + 1.96 * 0.2)
    assert result["area_bias"]["mean_absolute"] == pytest.approx(0.5 / 3)
