from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import HOSTILE, check_page, patches
from wsi_idc.evaluation.compare import Comparison, Predictions, compare
from wsi_idc.evaluation.comparison_page import (
    differences,
    paired_patients,
    tally,
    write_comparison_page,
)

A = [patches("a", "0011", [0.1, 0.9, 0.2, 0.9]), patches("b", "01", [0.1, 0.9])]
B = [patches("a", "0011", [0.1, 0.2, 0.8, 0.9]), patches("b", "01", [0.1, 0.9])]


def compare_tables(a: list[pd.DataFrame], b: list[pd.DataFrame]) -> Comparison:
    predictions = [
        Predictions(Path(name), 0.5, pd.concat(parts, ignore_index=True), {})
        for name, parts in (("a", a), ("b", b))
    ]
    return compare(*predictions, num_resamples=20)


COMPARISON = compare_tables(A, B)


def test_patients_are_counted_by_the_larger_value():
    assert tally(COMPARISON.patients, "auc") == {"a": 0, "b": 1, "same": 1, "none": 0}
    swapped = compare_tables(B, A).patients
    assert tally(swapped, "dice") == {"a": 1, "b": 0, "same": 1, "none": 0}


def test_the_page_names_both_and_lists_where_each_is_better(tmp_path: Path):
    metrics = COMPARISON.metrics.copy()
    metrics["better"] = ["b", "a", *[""] * (len(metrics) - 2)]
    comparison = Comparison(metrics, COMPARISON.patients, 2, 6)
    write_comparison_page(comparison, tmp_path, name_a=HOSTILE, name_b="runs/b")
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
    auc, dice = paired_patients(COMPARISON).axes
    assert auc.collections[0].get_offsets().tolist() == [[0.5 + 0.125, 1], [1, 1]]
    assert auc.get_title() == "AUC: larger with B 1, with A 0, same 1"
    assert [text.get_text() for text in dice.texts] == ["a"]


def test_differences_are_b_minus_a():
    (ax,) = differences(COMPARISON).axes
    offsets = [marks.get_offsets() for marks in ax.collections if len(marks.get_offsets()) > 1]
    assert offsets[-1][:, 0].tolist() == COMPARISON.metrics["difference"].tolist()
    assert ax.get_yticklabels()[-1].get_text() == "ECE (smaller is better)"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([patches("a", "1", [0.9])], [patches("a", "1", [0.9])]),
        ([patches("a", "00", [0.1, 0.2])], [patches("a", "00", [0.9, 0.2])]),
    ],
)
def test_a_comparison_of_one_class_has_a_page(
    a: list[pd.DataFrame], b: list[pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)
    write_comparison_page(compare_tables(a, b), tmp_path, name_a="a", name_b="b")
    check_page(tmp_path / "comparison.html")
