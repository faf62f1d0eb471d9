import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi_idc.data.pack import Pack
from wsi_idc.errors import DataError
from wsi_idc.learn.evaluate import Evaluation, choose_patients, evaluate, write_evaluation
from wsi_idc.learn.metrics import all_metrics
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.device import choose_compute


def run(checkpoint: Checkpoint, pack: Pack, patients: list[str]) -> Evaluation:
    return evaluate(
        checkpoint,
        pack,
        patients,
        split="test",
        compute=choose_compute("cpu"),
        batch_size=32,
        num_resamples=20,
    )


def test_words_stand_for_patients(trained: Checkpoint, cohort: Pack):
    for role in ("test", "val"):
        assert choose_patients(trained, cohort, role) == sorted(trained.patients(role))
    assert choose_patients(trained, cohort, "unseen") == sorted(trained.patients("test"))


@pytest.mark.parametrize("split", ["train", "all"])
def test_patients_it_was_trained_on_are_refused(trained: Checkpoint, cohort: Pack, split: str):
    with pytest.raises(DataError, match="was trained on 3 of these patients") as caught:
        choose_patients(trained, cohort, split)
    assert "--allow-seen" in str(caught.value)
    assert len(choose_patients(trained, cohort, split, allow_seen=True)) >= 3


def test_a_split_that_is_not_in_the_data_says_what_to_do(trained: Checkpoint, pack: Pack):
    with pytest.raises(DataError, match="--split unseen"):
        choose_patients(trained, pack, "test")
    assert choose_patients(trained, pack, "unseen") == pack.patients


def test_metrics_are_those_of_the_written_predictions(
    trained: Checkpoint, cohort: Pack, tmp_path: Path
):
    patients = choose_patients(trained, cohort, "test")
    evaluation = run(trained, cohort, patients)
    write_evaluation(evaluation, tmp_path / "eval")
    table = pd.read_csv(tmp_path / "eval" / "predictions.csv")
    assert sorted(table["patient"].unique()) == patients
    found = all_metrics(
        table["label"].to_numpy(), table["probability"].to_numpy(), threshold=trained.threshold
    )
    written = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert written["metrics"] == pytest.approx(found, abs=1e-6)
    low, high = written["intervals_95"]["auc"]
    assert low <= written["metrics"]["auc"] <= high
    assert sum(written["confusion"].values()) == len(table) == written["num_patches"]
    by_patient = pd.read_csv(tmp_path / "eval" / "patients.csv")
    assert by_patient["patches"].sum() == len(table)


def test_unknown_labels_are_left_out(trained: Checkpoint, cohort: Pack):
    patients = choose_patients(trained, cohort, "test")
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
    patients = choose_patients(trained, cohort, "test")
    benign = Pack(cohort.path)
    benign.index["label"] = 0
    found = run(trained, benign, patients).as_dict()
    assert found["metrics"]["auc"] is None
    assert found["intervals_95"]["auc"] == [None, None]
    json.dumps(found, allow_nan=False)  # raises on a NaN
