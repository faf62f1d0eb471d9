import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import TWO_PATIENTS, evaluation_of, patches
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.results import is_evaluated, is_evaluation, write_evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import all_metrics
from wsi_idc.models.checkpoint import Checkpoint

TWO = evaluation_of(TWO_PATIENTS)


def test_files_agree_with_each_other(tmp_path: Path):
    write_evaluation(TWO, tmp_path / "eval")
    table = pd.read_csv(tmp_path / "eval" / "predictions.csv")
    record = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    arrays = (table[name].to_numpy() for name in ("label", "probability"))
    metrics = all_metrics(*arrays, threshold=record["threshold"])
    assert record["metrics"] == pytest.approx(metrics, abs=1e-6)
    low, high = record["intervals_95"]["auc"]
    assert low <= record["metrics"]["auc"] <= high
    assert set(record["intervals_95"]) == set(metrics)
    assert sum(record["confusion"].values()) == len(table) == record["num_patches"]
    assert TWO.final.num_patches == len(table)
    assert sorted(table["patient"].unique()) == ["a", "b"]
    assert pd.read_csv(tmp_path / "eval" / "patients.csv")["patches"].sum() == len(table)
    assert record["provenance"]["num_resamples"] == 20


def test_undefined_values_are_null_in_json():
    record = evaluation_of(patches(("a", "00", [0.1, 0.2]))).as_dict()
    assert record["metrics"]["auc"] is None
    assert record["intervals_95"]["auc"] == [None, None]
    json.dumps(record, allow_nan=False)  # raises on a NaN


def test_an_evaluation_is_recognized_by_predictor_and_data(
    trained: Checkpoint, cohort: Pack, pack: Pack, tmp_path: Path
):
    predictor = Predictor((trained,))
    fingerprint = cohort.info.source_fingerprint
    record = TWO.record | {"method": predictor.summary(), "data_fingerprint": fingerprint}
    write_evaluation(replace(TWO, record=record), tmp_path)
    assert is_evaluated(tmp_path, predictor, cohort)
    assert not is_evaluated(tmp_path, predictor, pack)
    assert not is_evaluated(tmp_path, Predictor((trained,), tta=True), cohort)
    assert not is_evaluated(tmp_path / "none", predictor, cohort)


def test_an_interrupted_rewrite_is_not_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_evaluation(TWO, tmp_path)
    assert is_evaluation(tmp_path)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_idc.evaluation.results.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(TWO, tmp_path)
    assert not is_evaluation(tmp_path)


def test_results_are_importable_without_torch():
    code = (
        "import sys; from wsi_idc.evaluation import compare, results; "
        "sys.exit(bool({'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
