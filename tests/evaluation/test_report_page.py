import re
from pathlib import Path

import pandas as pd

from tests.evaluations import METHOD, check_page, evaluation_of, patches
from wsi_idc.evaluation.report_page import describe_provenance, write_evaluation_page
from wsi_idc.plotting.number_format import NONE

TWO = pd.concat(
    [patches("a", "00011", [0.1, 0.6, 0.2, 0.9, 0.3]), patches("b", "0111", [0.4, 0.8, 0.7, 0.2])],
    ignore_index=True,
)


def test_the_page_shows_the_metrics(tmp_path: Path):
    write_evaluation_page(evaluation_of(TWO), tmp_path / "report.html", {})
    page = check_page(tmp_path / "report.html")
    headline = page.words[page.words.index("F1") + 1 :]
    assert next(word for word in headline if word.strip()) == "0.667"
    assert "at 55.6 % IDC" in page.text
    rows = re.findall(r'<bdi>(\w)</bdi></td><td data-value="(\d+)"', page.text)
    assert rows == [("a", "5"), ("b", "4")]


def test_an_undefined_value_is_sorted_as_empty(tmp_path: Path):
    table = patches("a", "00", [0.1, 0.2])
    write_evaluation_page(evaluation_of(table), tmp_path / "report.html", {})
    text = (tmp_path / "report.html").read_text()
    assert f'<td data-value="">{NONE}</td>' in text
    assert '<td data-value="0.0">0.0 %</td>' in text


def test_provenance_of_one_checkpoint_and_of_an_ensemble():
    single = dict(describe_provenance(evaluation_of(TWO)))
    assert single["Threshold"] == "0.5000, set on val patients when it was trained"
    assert single["Checkpoint"] == "best.pt, cnn-bn, patches of 50 px at 4 µm/px"
    assert single["Smoothing"] == "no"
    members = [METHOD, METHOD | {"checkpoint": "b.pt"}]
    smoothed = TWO.assign(probability_smoothed=TWO["probability"])
    ensemble = dict(describe_provenance(evaluation_of(smoothed, method={"ensemble": members})))
    assert ensemble["Checkpoint 2"].startswith("b.pt, ")
    assert ensemble["Threshold"].startswith("0.5000, mean of the checkpoints' thresholds")
    assert ensemble["Smoothing"] != "no"
