from pathlib import Path

import pandas as pd
import pytest

from tests.evaluation.test_report import HOSTILE, check_page
from tests.evaluations import patches
from wsi_idc.evaluation.compare import Comparison, Predictions, compare
from wsi_idc.evaluation.comparison_page import (
    differences,
    paired_patients,
    tally,
    write_comparison_page,
)

A = [patches("a", "0011", [0.1, 0.9, 0.2, 0.9]), patches("b", "01", [0.1, 0.9])]
B = [patches("a", "0011", [0.1, 0.2, 0.8, 0.9]), patches("b", "01", [0.1, 0.9])]


def compared(a: list[pd.DataFrame], b: list[pd.DataFrame]) -> Comparison:
    key = ["patient", "x", "y"]
    one, other = (
        Predictions(Path(name), 0.5, pd.concat(of).sort_values(key, ignore_index=True), {})
        for name, of in (("a", a), ("b", b))
    )
    return compare(one, other, num_resamples=20)


def test_patients_are_counted_by_who_is_better():
    table = compared(A, B).patients
    assert tally(table, "auc") == {"a": 0, "b": 1, "same": 1, "none": 0}
    assert tally(compared(B, A).patients, "dice") == {"a": 1, "b": 0, "same": 1, "none": 0}


def test_the_page_names_both_and_says_who_is_better_where(tmp_path):
    metrics = compared(A, B).metrics
    metrics["better"] = ["b", "a", *[""] * (len(metrics) - 2)]
    comparison = Comparison(metrics, compared(A, B).patients, 2, 6)
    write_comparison_page(comparison, tmp_path, name_a=HOSTILE, name_b="runs/b")
    page = check_page(tmp_path / "comparison.html")
    words = [word.strip() for word in page.words if word.strip()]
    assert words[words.index("A") + 1] == HOSTILE
    assert words[words.index("B") + 1] == "runs/b"
    assert words[words.index("B is better in") + 1] == "AUC"
    assert words[words.index("A is better in") + 1] == "Average precision"
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}" for name in ("differences", "paired_patients") for kind in ("png", "svg")
    }


def test_pairs_are_drawn_b_over_a():
    auc, dice = paired_patients(compared(A, B)).axes
    assert auc.collections[0].get_offsets().tolist() == [[0.5 + 0.125, 1], [1, 1]]
    assert auc.get_title() == "AUC: larger with B 1, with A 0, same 1"
    assert [text.get_text() for text in dice.texts] == ["a"]


def test_differences_are_b_minus_a():
    comparison = compared(A, B)
    (ax,) = differences(comparison).axes
    drawn = [points.get_offsets() for points in ax.collections if len(points.get_offsets()) > 1]
    assert drawn[-1][:, 0].tolist() == comparison.metrics["difference"].tolist()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[-1] == "ECE (smaller is better)"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([patches("a", "1", [0.9])], [patches("a", "1", [0.9])]),
        ([patches("a", "00", [0.1, 0.2])], [patches("a", "00", [0.9, 0.2])]),
        (A[:1], B[:1]),
    ],
)
def test_few_patches_and_one_class(a, b, tmp_path):
    write_comparison_page(compared(a, b), tmp_path, name_a="a", name_b="b")
    check_page(tmp_path / "comparison.html")
