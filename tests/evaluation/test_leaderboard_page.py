from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import HOSTILE, check_page, evaluation_of, patches
from wsi_idc.evaluation.leaderboard import leaderboard, published_results
from wsi_idc.evaluation.leaderboard_page import (
    leaderboard_chart,
    ranking_metric,
    write_leaderboard_page,
)

GOOD = pd.concat(
    [patches("a", "0011", [0.1, 0.2, 0.8, 0.9]), patches("b", "01", [0.1, 0.9])], ignore_index=True
)
POOR = GOOD.assign(probability=1 - GOOD["probability"])
EVALUATIONS = [("runs/poor", evaluation_of(POOR)), (HOSTILE, evaluation_of(GOOD))]
BENIGN = [("a", evaluation_of(patches("a", "00", [0.1, 0.2])))]


def test_published_results_are_separate(tmp_path: Path):
    write_leaderboard_page(leaderboard(EVALUATIONS), tmp_path, is_fair=True)
    page = check_page(tmp_path / "leaderboard.html")
    names = [word for word in page.words if word in (HOSTILE, "runs/poor")]
    assert names == [HOSTILE, "runs/poor"]
    assert page.text.count('<tr class="published">') == len(published_results())
    before, after = page.text.split("Published results on other patients, for context only")
    assert '<tr class="published">' not in before and "runs/poor" not in after
    assert "not of the same patches" not in page.text
    assert (tmp_path / "figures" / "leaderboard.png").exists()


@pytest.mark.parametrize(
    ("evaluations", "metric"),
    [(EVALUATIONS, "average_precision"), (EVALUATIONS, "ece"), (BENIGN, "mcc")],
)
def test_each_metric_can_rank(
    evaluations: list, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)
    table = leaderboard(evaluations, rank_by=metric)
    assert ranking_metric(table) == metric
    write_leaderboard_page(table, tmp_path, is_fair=False)
    assert "not of the same patches" in check_page(tmp_path / "leaderboard.html").text


def test_measured_marks_are_filled_and_published_ones_hollow():
    (ax,) = leaderboard_chart(leaderboard(EVALUATIONS)).axes
    measured, published = ax.lines[:2]
    assert measured.get_xdata().tolist() == [1, 0]
    known = published_results()["auc"].dropna().sort_values(ascending=False)
    assert published.get_xdata().tolist() == known.tolist()
    assert (measured.get_mfc() == "white", published.get_mfc() == "white") == (False, True)


def test_a_metric_without_any_value_is_noted():
    (ax,) = leaderboard_chart(leaderboard(BENIGN, rank_by="mcc")).axes
    assert ax.texts[0].get_text() == "none has a value of MCC"
