import html
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tests.evaluations import METHOD, check_page, evaluation_of, patches
from wsi_idc.evaluation.report_page import write_evaluation_page
from wsi_idc.evaluation.results import Evaluation
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


def provenance_of(evaluation: Evaluation, path: Path) -> dict[str, str]:
    """Return the texts of the card of predictor and data, by title."""
    write_evaluation_page(evaluation, path, {})
    return dict(re.findall(r"<dt>(.*)</dt><dd>(.*)</dd>", html.unescape(path.read_text())))


def test_provenance_of_one_checkpoint_and_of_an_ensemble(tmp_path: Path):
    single = provenance_of(evaluation_of(TWO), tmp_path / "a.html")
    assert single["Patients"] == "test: test patients of the checkpoint's split, 2"
    assert single["Threshold"] == "0.5000, set on val patients when it was trained"
    assert single["Checkpoint"] == "best.pt, cnn-bn, patches of 50 px at 4 µm/px"
    assert single["Smoothing"] == "no"
    assert single["Intervals"] == "95 %, 20 resamples of patients, seed 0"
    members = [METHOD, METHOD | {"checkpoint": "b.pt"}]
    smoothed = TWO.assign(probability_smoothed=TWO["probability"])
    evaluation = evaluation_of(smoothed, method={"ensemble": members})
    ensemble = provenance_of(replace(evaluation, num_unknown=3), tmp_path / "b.html")
    assert ensemble["Patches"] == "9; 3 of unknown label left out"
    assert ensemble["Checkpoint 2"].startswith("b.pt, ")
    assert ensemble["Ensemble"] == "mean probability of 2 checkpoints"
    assert ensemble["Threshold"].startswith("0.5000, mean of the checkpoints' thresholds")
    assert ensemble["Threshold"].endswith(", for smoothed probabilities")
    assert ensemble["Smoothing"] != "no"
