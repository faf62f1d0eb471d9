import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluations import evaluation_of, patches
from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.errors import DataError
from wsi_idc.core.metric_table import METRICS
from wsi_idc.evaluation.compare import (
    Predictions,
    compare,
    leaderboard,
    published_results,
    read_predictions,
    write_comparison,
    write_leaderboard,
)
from wsi_idc.evaluation.results import Evaluation


def make(name: str, *, noise: float, threshold: float = 0.5, seed: int = 0) -> Predictions:
    """Return noisy predictions of 50 patches of each of 8 patients."""
    label = np.random.default_rng(1).integers(0, 2, 400)
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
    return Predictions(Path(name), threshold, table)


A, B = make("a", noise=0.5), make("b", noise=0.2, threshold=0.55, seed=2)


def test_differences_and_intervals_are_those_of_a_plain_paired_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("wsi_idc.evaluation.compare.MIN_PATIENTS", 8)
    comparison = compare(A, B, seed=6, num_resamples=40)
    assert (comparison.num_patients, comparison.num_patches) == (8, 400)
    table = comparison.metrics.set_index("metric")
    assert list(table.index) == [name for name in METRICS if name != "prevalence"]
    resampled = []
    for patients in np.random.default_rng(6).integers(8, size=(40, 8)):
        rows = np.concatenate([np.arange(50) + 50 * patient for patient in patients])
        a, b = A.metrics_of(rows), B.metrics_of(rows)
        resampled.append([b[name] - a[name] for name in table.index])
    limits = np.percentile(resampled, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(table[["low", "high"]].to_numpy(float), limits, atol=1e-6)
    np.testing.assert_allclose(table["difference"], table["b"] - table["a"])
    assert table.loc["auc", "better"] == table.loc["brier", "better"] == "b"
    assert table.loc["brier", "difference"] < 0  # a smaller Brier score is better


def test_no_evaluation_is_better_with_few_patients_or_than_itself(monkeypatch: pytest.MonkeyPatch):
    table = compare(A, B, num_resamples=50).metrics
    assert (table.set_index("metric").loc["auc", ["low", "high"]] > 0).all()
    assert (table["better"] == "").all()
    monkeypatch.setattr("wsi_idc.evaluation.compare.MIN_PATIENTS", 2)
    table = compare(A, A, num_resamples=50).metrics
    assert (table[["difference", "low", "high"]] == 0).all().all()
    assert (table["better"] == "").all()


def test_each_patient_is_paired():
    row = compare(A, B, num_resamples=10).patients.set_index("patient").loc["P1"]
    expected_a, expected_b = (predictions.metrics_of(slice(50, 100)) for predictions in (A, B))
    assert (row["auc_b"], row["dice_b"]) == (expected_b["auc"], expected_b["f1"])
    assert row["auc_difference"] == pytest.approx(expected_b["auc"] - expected_a["auc"])


def test_one_patient_has_no_intervals_and_notes_of_both_are_listed_once():
    a, b = (replace(A, table=A.table[:50], notes=("both", f"only {name}")) for name in ("a", "b"))
    comparison = compare(a, b, num_resamples=20)
    assert comparison.notes == ("both", "A: only a", "B: only b")
    assert comparison.metrics["low"].isna().all()
    assert comparison.as_dict()["metrics"][0]["low"] is None


FLIPPED = A.table.assign(label=A.table["label"].where(A.table.index != 60, 1 - A.table["label"]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (A.table[A.table["patient"] != "P3"], r"the patients differ: 1 are only in a \(P3\)"),
        (A.table.drop(index=60).reset_index(drop=True), "not the same patches"),
        (FLIPPED, "have 1 patch with different labels .P1.; evaluate"),
    ],
)
def test_other_patients_patches_or_labels_are_refused(table: pd.DataFrame, message: str):
    with pytest.raises(DataError, match=message):
        compare(A, replace(B, table=table))


def record_of(judged: str, threshold: float) -> str:
    return json.dumps({"judged": judged, "threshold": threshold})


def write(folder: Path, table: pd.DataFrame) -> Path:
    (folder / "metrics.json").write_text(record_of("probability", 0.5))
    (folder / "predictions.csv").write_text(csv_text(table.iloc[::-1]))
    return folder


def test_an_evaluation_is_read_unchanged(tmp_path: Path):
    table = A.table.replace({"patient": {"P3": "NA", "P4": "null", "P5": "=1+1"}})
    table = table.sort_values(["patient", "x"], ignore_index=True)
    predictions = read_predictions(write(tmp_path, table))
    pd.testing.assert_frame_equal(predictions.table, table, check_dtype=False)
    assert predictions.threshold == 0.5
    assert compare(predictions, predictions, num_resamples=10).num_patients == 8


HEADER = "patient,x,y,label,probability\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", "not a readable evaluation"),
        ("metrics.json", "[]", "not a readable evaluation"),
        ("metrics.json", "[" * 200_000, "not a readable evaluation"),
        ("metrics.json", record_of("probability", 5), "the threshold is 5"),
        ("metrics.json", record_of("probability", float("nan")), "NaN is not JSON"),
        ("metrics.json", '{"judged": "probability", "threshold": 1e400}', "too large a number"),
        ("metrics.json", record_of("patient", 0.5), "unknown column 'patient'"),
        ("metrics.json", '{"judged": "label"}', "not a readable evaluation"),
        ("predictions.csv", f"{HEADER},0,0,1,0.5\na\n", "not a readable evaluation"),
        ("predictions.csv", f"{HEADER}a,{10**30},0,1,0.5\n", "not a readable evaluation"),
        ("predictions.csv", f"{HEADER}a,0,0,1,nan\n", "not within 0..1"),
        ("predictions.csv", f"{HEADER}a,0,0,2,0.5\n", "0 or 1"),
        ("predictions.csv", f"{HEADER}a,0,z,1,0.5\n", "not a readable evaluation"),
        ("predictions.csv", "patient,x\na,0\n", "not a readable evaluation"),
        ("predictions.csv", HEADER, "is empty or lists a patch twice"),
        ("predictions.csv", HEADER + 2 * "a,0,0,1,0.5\n", "is empty or lists a patch twice"),
        ("metrics.json", None, r"metrics\.json: no such file; run wsi-idc eval again"),
    ],
)
def test_a_damaged_evaluation_is_one_line(
    tmp_path: Path, name: str, text: str | None, message: str
):
    write(tmp_path, A.table)
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_a_pipe_is_no_evaluation(tmp_path: Path, name: str):
    write(tmp_path, A.table)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="not a readable evaluation"):
        read_predictions(tmp_path)


def test_a_comparison_is_written(tmp_path: Path):
    write_comparison(compare(A, B, num_resamples=10), tmp_path)
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == len(METRICS) - 1
    assert len(pd.read_csv(tmp_path / "patients.csv")) == 8
    assert json.loads((tmp_path / "comparison.json").read_text())["num_patients"] == 8


EVALUATION = evaluation_of(patches(("a", "0011", [0.1, 0.6, 0.8, 0.9])))


def with_metrics(**metrics: float) -> Evaluation:
    final = replace(EVALUATION.final, metrics={**EVALUATION.final.metrics, **metrics})
    return replace(EVALUATION, final=final)


def test_the_best_comes_first_and_published_results_last(tmp_path: Path):
    evaluations = [
        ("worse", with_metrics(auc=0.6, brier=0.1)),
        ("better", with_metrics(auc=0.7, brier=0.2)),
    ]
    table = leaderboard(evaluations)
    assert table["name"][:2].tolist() == ["better", "worse"]
    assert table["rank"][:2].tolist() == [1, 2]
    published = table[table["source"] == "published"]
    assert len(published) == len(published_results()) == 7
    assert published["rank"].isna().all()
    assert published["auc"].iloc[0] == 0.954
    assert set(published["test"]) >= {"canonical", "45 patients of its own"}
    by_brier = leaderboard(evaluations, rank_by="brier")
    assert by_brier["name"][:2].tolist() == ["worse", "better"]  # a smaller Brier score is better
    write_leaderboard(table, tmp_path)
    assert pd.read_csv(tmp_path / "leaderboard.csv")["name"].tolist() == table["name"].tolist()
    record = json.loads((tmp_path / "leaderboard.json").read_text())
    assert (record[0]["auc"], record[-1]["rank"]) == (0.7, None)


@pytest.mark.parametrize(
    ("names", "ranks"),
    [("f", {"f": 1}), ("fabg", {"b": 1, "a": 2}), ("af", {}), ("fgabc", {"c": 1, "b": 2, "a": 3})],
)
def test_only_evaluations_of_the_same_patches_are_ranked(names: str, ranks: dict[str, int]):
    auc = {"a": 0.6, "b": 0.7, "c": 0.8, "f": 0.9, "g": 0.95}
    evaluations = [(name, with_metrics(auc=auc[name])) for name in names]
    for start, name in ((1, "f"), (2, "g")):
        evaluations = [
            (n, replace(e, predictions=e.predictions[start:]) if n == name else e)
            for n, e in evaluations
        ]
    table = leaderboard(evaluations)[: len(names)].set_index("name")
    assert table["rank"].dropna().to_dict() == ranks
    assert set(table.index[table["source"] == "measured"]) == set(ranks)
    apart = table[table["source"] == "measured on other patches"]
    assert apart["auc"].is_monotonic_decreasing
    assert list(table.index) == [*ranks, *apart.index]
