import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi_idc.core.errors import DataError
from wsi_idc.core.metric_table import METRICS
from wsi_idc.evaluation.compare import Predictions, compare, read_predictions, write_comparison
from wsi_idc.metrics.classification import all_metrics


def made(name: str, *, noise: float, threshold: float = 0.5, seed: int = 0) -> Predictions:
    """Return an evaluation of 8 patients whose probabilities are as noisy as asked for."""
    truth = np.random.default_rng(1)
    label = truth.integers(0, 2, 400)
    rng = np.random.default_rng(seed)
    probability = np.clip(0.3 + 0.4 * label + noise * rng.normal(size=400), 0, 1)
    table = pd.DataFrame(
        {
            "patient": np.repeat([f"P{number}" for number in range(8)], 50),
            "x": np.tile(np.arange(50) * 50, 8),
            "y": 0,
            "label": label,
            "probability": probability.astype(np.float32),
        }
    )
    return Predictions(Path(name), threshold, table, {})


def test_differences_and_intervals_are_those_of_a_plain_paired_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("wsi_idc.evaluation.compare.MIN_PATIENTS", 8)
    a, b = made("a", noise=0.5), made("b", noise=0.2, threshold=0.55, seed=2)
    found = compare(a, b, seed=6, num_resamples=40)
    assert (found.num_patients, found.num_patches) == (8, 400)
    drawn = np.random.default_rng(6).integers(8, size=(40, 8))
    table = found.metrics.set_index("metric")
    assert list(table.index) == [name for name in METRICS if name != "prevalence"]
    differences = []
    for patients in drawn:
        rows = np.concatenate([np.arange(50) + 50 * patient for patient in patients])
        one, two = (
            all_metrics(
                of.table["label"].to_numpy()[rows],
                of.table["probability"].to_numpy()[rows],
                threshold=of.threshold,
            )
            for of in (a, b)
        )
        differences.append({name: two[name] - one[name] for name in one})
    for name in table.index:
        expected = np.percentile([one[name] for one in differences], [2.5, 97.5])
        assert table.loc[name, ["low", "high"]].tolist() == pytest.approx(expected, abs=1e-6)
        gap = table.loc[name, "b"] - table.loc[name, "a"]
        assert table.loc[name, "difference"] == pytest.approx(gap)
    assert table.loc["auc", "better"] == table.loc["brier", "better"] == "b"
    assert table.loc["brier", "difference"] < 0  # less is better


def test_of_few_patients_none_is_called_better():
    found = compare(made("a", noise=0.5), made("b", noise=0.2, seed=2), num_resamples=50).metrics
    assert (found.set_index("metric").loc["auc", ["low", "high"]] > 0).all()
    assert (found["better"] == "").all()


def test_a_patient_may_be_named_na(tmp_path: Path):
    one = made("a", noise=0.3)
    named = replace(one, table=one.table.replace({"patient": {"P3": "NA", "P4": "null"}}))
    found = read_predictions(write(tmp_path / "a", named))
    assert {"NA", "null"} < set(found.table["patient"])
    assert compare(found, found, num_resamples=10).num_patients == 8


def test_a_method_is_not_better_than_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsi_idc.evaluation.compare.MIN_PATIENTS", 2)
    found = compare(made("a", noise=0.4), made("b", noise=0.4), num_resamples=50).metrics
    assert (found[["difference", "low", "high"]] == 0).all().all()
    assert (found["better"] == "").all()


def test_each_patient_is_paired():
    a, b = made("a", noise=0.5), made("b", noise=0.2, threshold=0.6, seed=2)
    table = compare(a, b, num_resamples=10).patients.set_index("patient")
    rows = slice(50, 100)
    expected = all_metrics(
        b.table["label"].to_numpy()[rows], b.table["probability"].to_numpy()[rows], threshold=0.6
    )
    assert table.loc["P1", "auc_b"] == expected["auc"]
    assert table.loc["P1", "dice_b"] == expected["f1"]
    assert table.loc["P1", "auc_difference"] == pytest.approx(
        table.loc["P1", "auc_b"] - table.loc["P1", "auc_a"]
    )


def test_other_patients_patches_or_labels_are_refused():
    a = made("a", noise=0.3)
    fewer = replace(made("b", noise=0.3), table=a.table[a.table["patient"] != "P3"])
    with pytest.raises(DataError, match=r"not the same patients: 1 only in a \(P3\)"):
        compare(a, fewer)
    short = replace(made("b", noise=0.3), table=a.table.drop(index=60).reset_index(drop=True))
    with pytest.raises(DataError, match="not the same patches"):
        compare(a, short)
    flipped = a.table.copy()
    flipped.loc[60, "label"] = 1 - flipped.loc[60, "label"]
    with pytest.raises(DataError, match="have 1 different labels, of patients P1"):
        compare(a, replace(a, table=flipped))


def test_one_patient_has_no_intervals():
    a = made("a", noise=0.3)
    one = replace(a, table=a.table[:50])
    found = compare(one, one, num_resamples=20)
    assert found.metrics["low"].isna().all()
    assert found.as_dict()["metrics"][0]["low"] is None


def record_of(judged: str, threshold: float) -> str:
    method = {"method": {"a": 1}}
    return json.dumps({"judged": judged, "threshold": threshold, "provenance": method})


def write(folder: Path, one: Predictions) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(record_of("probability", 0.5))
    one.table.iloc[::-1].to_csv(folder / "predictions.csv", index=False)
    return folder


def test_an_evaluation_is_read_as_it_was(tmp_path: Path):
    one = made("a", noise=0.3)
    found = read_predictions(write(tmp_path / "a", one))
    pd.testing.assert_frame_equal(found.table, one.table, check_dtype=False)
    assert (found.threshold, found.method) == (0.5, {"a": 1})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.json", "{", "not a readable evaluation"),
        ("metrics.json", "[]", "not a readable evaluation"),
        ("metrics.json", "[" * 200_000, "not a readable evaluation"),
        ("metrics.json", record_of("probability", 5), "the threshold is 5"),
        ("metrics.json", record_of("probability", float("nan")), "NaN is not JSON"),
        ("metrics.json", '{"judged": "probability", "threshold": 1e400}', "too large a number"),
        ("metrics.json", record_of("patient", 0.5), "judged is 'patient'"),
        ("predictions.csv", "patient,x,y,label,probability\n,0,0,1,0.5\na\n", "not a readable"),
        (
            "predictions.csv",
            f"patient,x,y,label,probability\na,{10**30},0,1,0.5\n",
            "not a readable evaluation",
        ),
        ("metrics.json", '{"judged": "label"}', "not a readable evaluation"),
        ("predictions.csv", "patient,x,y,label,probability\na,0,0,1,nan\n", "within 0 and 1"),
        ("predictions.csv", "patient,x,y,label,probability\na,0,0,2,0.5\n", "0 or 1"),
        ("predictions.csv", "patient,x,y,label,probability\na,0,z,1,0.5\n", "not a readable"),
        ("predictions.csv", "patient,x\na,0\n", "not a readable"),
        ("predictions.csv", "patient,x,y,label,probability\n", "is empty or lists a patch twice"),
        (
            "predictions.csv",
            "patient,x,y,label,probability\na,0,0,1,0.5\na,0,0,1,0.5\n",
            "lists a patch twice",
        ),
    ],
)
def test_a_damaged_evaluation_is_one_line(tmp_path: Path, name: str, text: str, reason: str):
    folder = write(tmp_path / "a", made("a", noise=0.3))
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        read_predictions(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_says_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match=r"metrics\.json: no such file; run wsi-idc eval again"):
        read_predictions(tmp_path)


def test_a_comparison_is_written(tmp_path: Path):
    found = compare(made("a", noise=0.5), made("b", noise=0.2), num_resamples=10)
    write_comparison(found, tmp_path)
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == len(METRICS) - 1
    assert len(pd.read_csv(tmp_path / "patients.csv")) == 8
    assert json.loads((tmp_path / "comparison.json").read_text())["num_patients"] == 8
