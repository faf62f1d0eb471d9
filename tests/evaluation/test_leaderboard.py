import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.evaluate import choose_patients, evaluate
from wsi_idc.evaluation.leaderboard import (
    leaderboard,
    published_results,
    same_patients,
    write_leaderboard,
)
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device


@pytest.fixture
def evaluation(trained: Checkpoint, cohort: Pack) -> Evaluation:
    method = Predictor((trained,))
    return evaluate(
        method,
        cohort,
        choose_patients(method, cohort, "test"),
        split="test",
        device_config=select_device("cpu"),
        batch_size=64,
        num_resamples=10,
    )


def with_metrics(evaluation: Evaluation, **metrics: float) -> Evaluation:
    final = evaluation.final
    return replace(evaluation, final=replace(final, metrics={**final.metrics, **metrics}))


def test_the_best_comes_first_and_the_published_are_set_apart(
    evaluation: Evaluation, tmp_path: Path
):
    worse = with_metrics(evaluation, auc=0.6, brier=0.1)
    better = with_metrics(evaluation, auc=0.7, brier=0.2)
    table = leaderboard([("worse", worse), ("better", better)])
    assert table["name"][:2].tolist() == ["better", "worse"]
    assert table["rank"][:2].tolist() == [1, 2]
    published = table[table["source"] == "published"]
    assert len(published) == len(published_results()) == 7
    assert published["rank"].isna().all()
    assert published["auc"].iloc[0] == 0.954
    assert set(published["test"]) >= {"canonical", "45 patients of its own"}
    by_brier = leaderboard([("worse", worse), ("better", better)], rank_by="brier")
    assert by_brier["name"][:2].tolist() == ["worse", "better"]  # of Brier, less is better
    write_leaderboard(table, tmp_path)
    assert pd.read_csv(tmp_path / "leaderboard.csv")["name"].tolist() == table["name"].tolist()
    written = json.loads((tmp_path / "leaderboard.json").read_text())
    assert written[0]["auc"] == 0.7
    assert written[-1]["rank"] is None


def test_ranks_are_fair_only_on_the_same_patches(evaluation: Evaluation):
    fewer = replace(evaluation, predictions=evaluation.predictions[1:])
    assert same_patients([("a", evaluation), ("b", evaluation)])
    assert not same_patients([("a", evaluation), ("b", fewer)])
