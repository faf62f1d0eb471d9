import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluations import Page, evaluation_of, patches
from wsi_idc.evaluation.novelty import novelty_bins, novelty_chart
from wsi_idc.evaluation.report import write_evaluation_page
from wsi_idc.evaluation.results import write_evaluation

TABLE = patches(("a", "0101", [0.1, 0.9, 0.8, 0.2]), ("b", "01", [0.1, 0.4])).assign(
    novelty=[0.0, 0.1, 0.999, 1.0, 0.2, 0.995]
)


def test_bins_have_error_rate_and_auc():
    table = novelty_bins(TABLE, "probability", 0.5)
    assert table["low"].tolist() == [0, 0.2, 0.99]
    assert table["high"].tolist() == [0.2, 0.4, 1]
    assert table["patches"].tolist() == [2, 1, 3]
    assert table["prevalence"].tolist() == pytest.approx([1 / 2, 0, 2 / 3])
    assert table["error_rate"].tolist() == [0, 0, 1]
    assert table["auc"].tolist() == pytest.approx([1, np.nan, 0], nan_ok=True)


def test_without_novelty_there_is_no_table():
    assert novelty_bins(TABLE.drop(columns="novelty"), "probability", 0.5) is None


def test_an_evaluation_writes_the_table(tmp_path: Path):
    evaluation = evaluation_of(TABLE)
    write_evaluation(evaluation, tmp_path)
    table = pd.read_csv(tmp_path / "novelty.csv")
    pd.testing.assert_frame_equal(table, evaluation.novelty, check_dtype=False)
    bins = json.loads((tmp_path / "metrics.json").read_text())["by_novelty"]
    assert [row["auc"] for row in bins] == [1, None, 0]
    write_evaluation_page(evaluation, tmp_path / "report.html", {})
    words = Page(tmp_path / "report.html").words
    assert [word for word in words if word.startswith("0.99 to")] == ["0.99 to 1"]
    write_evaluation(replace(evaluation, novelty=None), tmp_path)
    assert not (tmp_path / "novelty.csv").exists()


def test_the_figure_has_a_bar_per_bin():
    (ax,) = novelty_chart(evaluation_of(TABLE)).axes
    assert [bar.get_height() for bar in ax.patches] == [0, 0, 1]
    assert ax.texts[0].get_text() == "2\nAUC 1.000"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["all patches: 50.0 %"]
