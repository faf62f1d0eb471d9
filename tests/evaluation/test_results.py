import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluations import evaluation_of, patches
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.results import is_evaluated, is_evaluation, write_evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.metrics.classification import all_metrics
from wsi_idc.models.checkpoint import Checkpoint

TWO = pd.concat([patches("a", "0011", [0.1, 0.6, 0.8, 0.9]), patches("b", "01", [0.1, 0.4])])


def test_files_agree_with_each_other(tmp_path: Path):
    evaluation = evaluation_of(TWO.reset_index(drop=True))
    write_evaluation(evaluation, tmp_path / "eval")
    table = pd.read_csv(tmp_path / "eval" / "predictions.csv")
    record = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    metrics = all_metrics(
        table["label"].to_numpy(), table["probability"].to_numpy(), threshold=record["threshold"]
    )
    assert record["metrics"] == pytest.approx(metrics, abs=1e-6)
    low, high = record["intervals_95"]["auc"]
    assert low <= record["metrics"]["auc"] <= high
    assert set(record["intervals_95"]) == set(metrics)
    assert sum(record["confusion"].values()) == len(table) == record["num_patches"]
    assert sorted(table["patient"].unique()) == ["a", "b"]
    assert pd.read_csv(tmp_path / "eval" / "patients.csv")["patches"].sum() == len(table)
    assert record["provenance"]["num_resamples"] == 20


def test_undefined_values_are_null_in_json():
    record = evaluation_of(patches("a", "00", [0.1, 0.2])).as_dict()
    assert record["metrics"]["auc"] is None
    assert record["intervals_95"]["auc"] == [None, None]
    json.dumps(record, allow_nan=False)  # raises on a NaN


def test_an_evaluation_is_recognized_by_predictor_and_data(
    trained: Checkpoint, cohort: Pack, pack: Pack, tmp_path: Path
):
    predictor = Predictor((trained,))
    evaluation = evaluation_of(
        TWO.reset_index(drop=True),
        method=predictor.summary(),
        data_fingerprint=cohort.info.source_fingerprint,
    )
    write_evaluation(evaluation, tmp_path)
    assert is_evaluated(tmp_path, predictor, cohort)
    assert not is_evaluated(tmp_path, predictor, pack)
    assert not is_evaluated(tmp_path, Predictor((trained,), tta=True), cohort)
    assert not is_evaluated(tmp_path / "none", predictor, cohort)


def test_an_interrupted_rewrite_is_not_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluation = evaluation_of(TWO.reset_index(drop=True))
    write_evaluation(evaluation, tmp_path)
    assert is_evaluation(tmp_path)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_idc.evaluation.results.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(evaluation, tmp_path)
    assert not is_evaluation(tmp_path)


def test_results_are_importable_without_torch():
    code = (
        "import sys; from wsi_idc.evaluation import compare, leaderboard, results; "
        "sys.exit(bool({'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metric_sets_count_their_patches():
    final = evaluation_of(TWO.reset_index(drop=True)).final
    assert final.num_patches == len(TWO)
    assert np.isclose(final.metrics["prevalence"], 0.5)
