from dataclasses import replace

import pandas as pd
import pytest

from tests.evaluation.test_report import HOSTILE, check_page
from tests.evaluations import evaluation_of, patches
from wsi_idc.evaluation.leaderboard import leaderboard, published_results
from wsi_idc.evaluation.leaderboard_page import (
    leaderboard_chart,
    ranking_metric,
    write_leaderboard_page,
)

GOOD = pd.concat([patches("a", "0011", [0.1, 0.2, 0.8, 0.9]), patches("b", "01", [0.1, 0.9])])
POOR = GOOD.assign(probability=1 - GOOD["probability"])
EVALUATIONS = [
    ("runs/poor", evaluation_of(POOR.reset_index(drop=True))),
    (HOSTILE, evaluation_of(GOOD.reset_index(drop=True))),
]


def test_published_results_are_set_apart(tmp_path):
    write_leaderboard_page(leaderboard(EVALUATIONS), tmp_path, is_fair=True)
    page = check_page(tmp_path / "leaderboard.html")
    names = [word for word in page.words if word in (HOSTILE, "runs/poor")]
    assert names == [HOSTILE, "runs/poor"]
    assert page.text.count('<tr class="published">') == len(published_results())
    before, after = page.text.split("Published results on other patients, for context only")
    assert '<tr class="published">' not in before and "runs/poor" not in after
    assert "not of the same patches" not in page.text
    assert (tmp_path / "figures" / "leaderboard.png").exists()


def test_unlike_patches_are_warned_of(tmp_path):
    write_leaderboard_page(leaderboard(EVALUATIONS), tmp_path, is_fair=False)
    assert "not of the same patches" in (tmp_path / "leaderboard.html").read_text()


@pytest.mark.parametrize("metric", ["average_precision", "ece"])
def test_any_metric_may_rank(metric, tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)
    table = leaderboard(EVALUATIONS, rank_by=metric)
    assert ranking_metric(table) == metric
    write_leaderboard_page(table, tmp_path, is_fair=True)
    check_page(tmp_path / "leaderboard.html")


def test_measured_ones_are_filled_and_published_ones_hollow():
    (ax,) = leaderboard_chart(leaderboard(EVALUATIONS)).axes
    ours, published = ax.lines[:2]
    assert ours.get_xdata().tolist() == [1, 0]
    known = published_results()["auc"].dropna().sort_values(ascending=False)
    assert published.get_xdata().tolist() == known.tolist()
    assert (ours.get_mfc() == "white", published.get_mfc() == "white") == (False, True)


def test_no_value_at_all(tmp_path):
    benign = evaluation_of(patches("a", "00", [0.1, 0.2]))
    table = leaderboard([("a", benign), ("b", replace(benign, notes=("x",)))], rank_by="mcc")
    write_leaderboard_page(table, tmp_path, is_fair=True)
    check_page(tmp_path / "leaderboard.html")
    (ax,) = leaderboard_chart(table).axes
    assert ax.texts[0].get_text() == "none has a value of MCC"
