import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tests.evaluations import evaluation_of, patches
from wsi_idc.evaluation.leaderboard import (
    leaderboard,
    published_results,
    same_patients,
    write_leaderboard,
)
from wsi_idc.evaluation.results import Evaluation

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


def test_ranks_are_fair_only_on_the_same_patches():
    fewer = replace(EVALUATION, predictions=EVALUATION.predictions[1:])
    assert same_patients([("a", EVALUATION), ("b", EVALUATION)])
    assert not same_patients([("a", EVALUATION), ("b", fewer)])
