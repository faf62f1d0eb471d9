from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import HOSTILE, check_page, evaluation_of, patches
from wsi_idc.evaluation import pages
from wsi_idc.evaluation.compare import (
    Comparison,
    Predictions,
    compare,
    leaderboard,
    published_results,
)

pytestmark = pytest.mark.usefixtures("low_resolution")
A = patches(("a", "0011", [0.1, 0.9, 0.2, 0.9]), ("b", "01", [0.1, 0.9]))
B = patches(("a", "0011", [0.1, 0.2, 0.8, 0.9]), ("b", "01", [0.1, 0.9]))


def compare_tables(*tables: pd.DataFrame) -> Comparison:
    return compare(*(Predictions(Path(), 0.5, table) for table in tables), num_resamples=20)


COMPARISON = compare_tables(A, B)
POOR = B.assign(probability=1 - B["probability"])
EVALUATIONS = [("runs/poor", evaluation_of(POOR)), (HOSTILE, evaluation_of(B))]
BENIGN = [("a", evaluation_of(patches(("a", "00", [0.1, 0.2]))))]


def test_patients_are_counted_by_the_larger_value():
    assert pages.tally(COMPARISON.patients, "auc") == {"a": 0, "b": 1, "same": 1, "none": 0}
    swapped = compare_tables(B, A).patients
    assert pages.tally(swapped, "dice") == {"a": 1, "b": 0, "same": 1, "none": 0}


def test_the_page_names_both_and_lists_where_each_is_better(tmp_path: Path):
    metrics = COMPARISON.metrics.copy()
    metrics["better"] = ["b", "a", *[""] * (len(metrics) - 2)]
    comparison = replace(COMPARISON, metrics=metrics)
    pages.write_comparison_page(comparison, tmp_path, name_a=HOSTILE, name_b="runs/b")
    page = check_page(tmp_path / "comparison.html")
    words = [word.strip() for word in page.words if word.strip()]
    assert words[words.index("A") + 1] == HOSTILE
    assert words[words.index("B") + 1] == "runs/b"
    assert words[words.index("B is better in") + 1] == "AUC"
    assert words[words.index("A is better in") + 1] == "Average precision"
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("differences", "paired_patients")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_pairs_are_drawn_b_over_a():
    auc, dice = pages.paired_patients(COMPARISON).axes
    assert auc.collections[0].get_offsets().tolist() == [[0.5 + 0.125, 1], [1, 1]]
    assert auc.get_title() == "AUC: larger with B 1, with A 0, same 1"
    assert [text.get_text() for text in dice.texts] == ["a"]


def test_differences_are_b_minus_a():
    (ax,) = pages.differences(COMPARISON).axes
    offsets = [marks.get_offsets() for marks in ax.collections if len(marks.get_offsets()) > 1]
    assert offsets[-1][:, 0].tolist() == COMPARISON.metrics["difference"].tolist()
    assert ax.get_yticklabels()[-1].get_text() == "ECE (smaller is better)"


@pytest.mark.parametrize(
    ("labels", "a", "b"), [("1", [0.9], [0.9]), ("00", [0.1, 0.2], [0.9, 0.2])]
)
def test_a_comparison_of_one_class_has_a_page(
    labels: str, a: list[float], b: list[float], tmp_path: Path
):
    comparison = compare_tables(*(patches(("a", labels, values)) for values in (a, b)))
    pages.write_comparison_page(comparison, tmp_path, name_a="a", name_b="b")
    check_page(tmp_path / "comparison.html")


def test_published_results_are_separate(tmp_path: Path):
    pages.write_leaderboard_page(leaderboard(EVALUATIONS), tmp_path)
    page = check_page(tmp_path / "leaderboard.html")
    names = [word for word in page.words if word in (HOSTILE, "runs/poor")]
    assert names == [HOSTILE, "runs/poor"]
    assert page.text.count('<tr class="published">') == len(published_results())
    before, after = page.text.split("Published results on other patients, for context only")
    assert '<tr class="published">' not in before and "runs/poor" not in after
    assert "not ranked" not in page.text
    assert (tmp_path / "figures" / "leaderboard.png").exists()


@pytest.mark.parametrize(
    ("evaluations", "metric"),
    [(EVALUATIONS, "average_precision"), (EVALUATIONS, "ece"), (BENIGN, "mcc")],
)
def test_each_metric_can_rank(evaluations: list, metric: str, tmp_path: Path):
    table = leaderboard(evaluations, rank_by=metric)
    assert pages.ranking_metric(table) == metric
    pages.write_leaderboard_page(table, tmp_path)
    check_page(tmp_path / "leaderboard.html")


def test_an_evaluation_of_other_patches_is_listed_apart(tmp_path: Path):
    (_, first), (_, second) = EVALUATIONS
    other = replace(first, predictions=first.predictions[1:])
    table = leaderboard([("a", first), ("other", other), ("b", second)])
    pages.write_leaderboard_page(table, tmp_path)
    page = check_page(tmp_path / "leaderboard.html")
    places = [page.text.index(text) for text in ("<bdi>b<", "so not ranked", "<bdi>other<")]
    assert places == sorted(places)
    assert "2 ranked" in page.text


def test_measured_marks_are_filled_and_published_ones_hollow():
    (ax,) = pages.leaderboard_chart(leaderboard(EVALUATIONS)).axes
    measured, published = ax.lines[:2]
    assert measured.get_xdata().tolist() == [1, 0]
    known = published_results()["auc"].dropna().sort_values(ascending=False)
    assert published.get_xdata().tolist() == known.tolist()
    assert (measured.get_mfc() == "white", published.get_mfc() == "white") == (False, True)


def test_a_metric_without_any_value_is_noted():
    (ax,) = pages.leaderboard_chart(leaderboard(BENIGN, rank_by="mcc")).axes
    assert ax.texts[0].get_text() == "no row has a value of MCC"
