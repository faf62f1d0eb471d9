import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import choose_patients, evaluate, evaluation_folder
from wsi_idc.evaluation.results import Evaluation, is_evaluated, write_evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import all_metrics
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device


def run(checkpoint: Checkpoint, pack: Pack, patients: list[str], **method: bool) -> Evaluation:
    return evaluate(
        Predictor((checkpoint,), **method),
        pack,
        patients,
        split="test",
        device_config=select_device("cpu"),
        batch_size=32,
        num_resamples=20,
    )


def test_words_stand_for_patients(trained: Checkpoint, cohort: Pack):
    for role in ("test", "val"):
        assert choose_patients(Predictor((trained,)), cohort, role) == sorted(
            trained.patients(role)
        )
    assert choose_patients(Predictor((trained,)), cohort, "unseen") == sorted(
        trained.patients("test")
    )


@pytest.mark.parametrize("split", ["train", "all"])
def test_patients_it_was_trained_on_are_refused(trained: Checkpoint, cohort: Pack, split: str):
    with pytest.raises(DataError, match="was trained on 3 of these patients") as caught:
        choose_patients(Predictor((trained,)), cohort, split)
    assert "--allow-seen" in str(caught.value)
    assert len(choose_patients(Predictor((trained,)), cohort, split, allow_seen=True)) >= 3


def test_a_split_that_is_not_in_the_data_says_what_to_do(trained: Checkpoint, pack: Pack):
    with pytest.raises(DataError, match="--split unseen"):
        choose_patients(Predictor((trained,)), pack, "test")
    assert choose_patients(Predictor((trained,)), pack, "unseen") == pack.patients


def test_metrics_are_those_of_the_written_predictions(
    trained: Checkpoint, cohort: Pack, tmp_path: Path
):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    evaluation = run(trained, cohort, patients)
    write_evaluation(evaluation, tmp_path / "eval")
    table = pd.read_csv(tmp_path / "eval" / "predictions.csv")
    assert sorted(table["patient"].unique()) == patients
    record = json.loads((tmp_path / "eval/metrics.json").read_text())["provenance"]
    assert (record["precision"], record["num_resamples"]) == ("fp32", 20)
    found = all_metrics(
        table["label"].to_numpy(), table["probability"].to_numpy(), threshold=trained.threshold
    )
    written = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert written["metrics"] == pytest.approx(found, abs=1e-6)
    low, high = written["intervals_95"]["auc"]
    assert low <= written["metrics"]["auc"] <= high
    assert set(written["intervals_95"]) == set(found)
    assert sum(written["confusion"].values()) == len(table) == written["num_patches"]
    by_patient = pd.read_csv(tmp_path / "eval" / "patients.csv")
    assert by_patient["patches"].sum() == len(table)


def test_unknown_labels_are_left_out(trained: Checkpoint, cohort: Pack):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    blinded = Pack(cohort.path)
    rows = np.concatenate([blinded.rows_of(patient) for patient in patients])
    blinded.index.loc[rows[::2], "label"] = -1
    evaluation = run(trained, blinded, patients)
    assert evaluation.num_unknown == len(rows[::2])
    assert evaluation.num_patches == len(rows) - len(rows[::2])
    blinded.index["label"] = -1
    with pytest.raises(DataError, match="no patch of these patients has a known label"):
        run(trained, blinded, patients)


def test_one_class_is_null_in_json(trained: Checkpoint, cohort: Pack):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    benign = Pack(cohort.path)
    benign.index["label"] = 0
    found = run(trained, benign, patients).as_dict()
    assert found["metrics"]["auc"] is None
    assert found["intervals_95"]["auc"] == [None, None]
    json.dumps(found, allow_nan=False)  # raises on a NaN
    (note, *others) = found["notes"]
    assert note == "every label is non-IDC: metrics that need both classes, like AUC, are empty"
    assert all("temperature" in other for other in others)


@pytest.mark.parametrize(
    ("split", "notes"),
    [
        ("test", []),
        ("val", ["had its epoch and threshold chosen on 1"]),
        ("train", ["was trained on 3"]),
        ("all", ["was trained on 3", "had its epoch and threshold chosen on 1"]),
    ],
)
def test_figures_that_flatter_are_noted(
    trained: Checkpoint, cohort: Pack, split: str, notes: list[str]
):
    patients = choose_patients(Predictor((trained,)), cohort, split, allow_seen=True)
    assert [note for note in run(trained, cohort, patients).notes if "too good" in note] == [
        f"a checkpoint {note} of these patients: the metrics are too good" for note in notes
    ]


def test_a_temperature_that_does_not_help_is_noted(trained: Checkpoint, cohort: Pack):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    plain = run(replace(trained, temperature=1.0), cohort, patients)
    assert not any("temperature" in note for note in plain.notes)
    # All probabilities about 0.5, whatever the label: worse than any that knows something.
    spoilt = run(replace(trained, temperature=99.0), cohort, patients)
    assert spoilt.final.metrics["ece"] > spoilt.ece_uncalibrated
    (note,) = (note for note in spoilt.notes if "temperature" in note)
    assert note.endswith(f"{spoilt.ece_uncalibrated:.4f} without it")


def test_one_patient_gives_no_intervals_and_says_so(trained: Checkpoint, cohort: Pack):
    patient = choose_patients(Predictor((trained,)), cohort, "test")[:1]
    found = run(trained, cohort, patient)
    assert np.isnan(found.final.intervals["auc"]).all()
    assert np.isnan(
        [found.patient_summary["auc"]["low"], found.patient_summary["auc"]["high"]]
    ).all()
    assert "with one patient there are no intervals" in found.notes
    assert found.bands is not None
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_patches_at_each_distance_make_up_all(trained: Checkpoint, cohort: Pack):
    found = run(trained, cohort, choose_patients(Predictor((trained,)), cohort, "test"))
    counts = [sum(vars(one.confusion).values()) for one in found.by_border.values()]
    assert list(found.by_border) == [0, 1, 2]
    assert sum(counts) == found.num_patches
    table = found.patients
    assert table["border0_patches"].sum() == counts[0]
    assert found.patient_summary["auc"]["mean"] == pytest.approx(table["auc"].mean())


def test_smoothing_is_judged_and_the_raw_kept_beside_it(
    trained: Checkpoint, cohort: Pack, tmp_path: Path
):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    raw = run(trained, cohort, patients)
    both = run(trained, cohort, patients, smooth=True)
    pd.testing.assert_series_equal(raw.predictions["probability"], both.predictions["probability"])
    assert both.final.column == "probability_smoothed"
    assert both.final.threshold == trained.smoothing.threshold
    assert both.raw.metrics == raw.final.metrics
    assert raw.raw is None
    assert both.final.metrics["auc"] != raw.final.metrics["auc"]
    write_evaluation(both, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["unsmoothed"]["metrics"]["auc"] == raw.final.metrics["auc"]


def test_neighbours_of_unknown_label_smooth_too(trained: Checkpoint, cohort: Pack):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    whole = run(trained, cohort, patients, smooth=True)
    blinded = Pack(cohort.path)
    rows = np.concatenate([blinded.rows_of(patient) for patient in patients])
    blinded.index.loc[rows[::2], "label"] = -1
    half = run(trained, blinded, patients, smooth=True)
    np.testing.assert_array_equal(
        half.predictions["probability_smoothed"], whole.predictions["probability_smoothed"][1::2]
    )


def test_views_give_an_uncertainty(trained: Checkpoint, cohort: Pack):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    found = run(trained, cohort, patients, tta=True).predictions
    assert found["uncertainty"].between(0, 0.5).all()
    assert "uncertainty" not in run(trained, cohort, patients).predictions


def test_an_ensemble_is_tested_only_on_patients_that_no_member_saw(
    trained: Checkpoint, cohort: Pack
):
    seen = sorted(trained.patients("test"))[0]
    moved = {**trained.split, seen: "train"}
    other = replace(trained, split=moved, fingerprint="other")
    method = Predictor((trained, other))
    assert choose_patients(method, cohort, "test") == sorted(trained.patients("test") - {seen})
    assert seen not in choose_patients(method, cohort, "unseen")
    with pytest.raises(DataError, match="was trained on"):
        choose_patients(method, cohort, "all")
    tested = replace(trained, split=dict.fromkeys(trained.split, "test"))
    with pytest.raises(DataError, match="was trained on 4 of these patients"):
        choose_patients(Predictor((tested, other)), cohort, "all")


def test_an_evaluation_is_known_by_method_and_data(
    trained: Checkpoint, cohort: Pack, pack: Pack, tmp_path: Path
):
    method = Predictor((trained,))
    write_evaluation(run(trained, cohort, choose_patients(method, cohort, "test")), tmp_path)
    assert is_evaluated(tmp_path, method, cohort)
    assert not is_evaluated(tmp_path, method, pack)
    assert not is_evaluated(tmp_path, Predictor((trained,), tta=True), cohort)
    assert not is_evaluated(tmp_path / "none", method, cohort)


def test_each_way_of_evaluating_has_a_folder_of_its_own(trained: Checkpoint, tmp_path: Path):
    folders = {
        evaluation_folder(Predictor((trained,), tta=tta, smooth=smooth), "test")
        for tta in (False, True)
        for smooth in (False, True)
    }
    home = trained.source.parent
    assert {path.relative_to(home).as_posix() for path in folders} == {
        "eval-test",
        "eval-test-tta",
        "eval-test-smooth",
        "eval-test-tta-smooth",
    }
    a, b = (replace(trained, source=tmp_path / f"{name}.pt", fingerprint=name) for name in "ab")
    assert evaluation_folder(Predictor((a,)), "val") == tmp_path / "a-eval-val"
    assert evaluation_folder(Predictor((b,)), "val") == tmp_path / "b-eval-val"
    assert evaluation_folder(Predictor((a, b)), "val").parent == Path("eval")


def test_an_interrupted_rewrite_leaves_no_old_record(
    trained: Checkpoint, cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    patients = choose_patients(Predictor((trained,)), cohort, "test")
    first, second = run(trained, cohort, patients), run(trained, cohort, patients, tta=True)
    write_evaluation(first, tmp_path)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_idc.evaluation.results.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(second, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
