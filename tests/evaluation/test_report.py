import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import METHOD, evaluation_of, pack_of, patches
from wsi_idc.evaluation.report import FIGURE_NAMES, evaluate_into, write_report
from wsi_idc.evaluation.report_page import describe_provenance, write_evaluation_page
from wsi_idc.inference.predictor import Predictor
from wsi_idc.plotting.number_format import NONE
from wsi_idc.runtime.device import select_device

HOSTILE = "<img src=x onerror=alert(1)>"
FEW = pd.concat(
    [patches("a", "00011", [0.1, 0.6, 0.2, 0.9, 0.3]), patches("b", "0111", [0.4, 0.8, 0.7, 0.2])],
    ignore_index=True,
)
WORLDS = {
    "two patients": FEW,
    "smoothed": FEW.assign(probability_smoothed=FEW["probability"].to_numpy()[::-1]),
    "one patch": patches("a", "1", [0.9]),
    "one patient": patches("a", "0101", [0.1, 0.2, 0.3, 0.4]),
    "no IDC": pd.concat([patches("a", "00", [0.1, 0.9]), patches("b", "00", [0.2, 0.3])]),
    "all IDC": pd.concat([patches("a", "11", [0.1, 0.9]), patches("b", "11", [0.2, 0.3])]),
    "all equal": pd.concat([patches("a", "01", [0.5, 0.5]), patches("b", "10", [0.5, 0.5])]),
    "all right and sure": patches("a", "0011", [0, 0, 1, 1]),
    "odd names": pd.concat([patches(HOSTILE, "01", [0.9, 0.1]), patches("患者$_{", "01", [1, 0])]),
}
HISTORY = [{"epoch": 1, "val_auc": 0.7, "train_loss": 0.6}, {"epoch": 2, "val_auc": 0.8}]


class Page(HTMLParser):
    """All tags and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def sources(self) -> list[str]:
        return [value or "" for _, attrs in self.tags for key, value in attrs.items()
                if key in ("src", "href", "srcset", "action", "data")]  # fmt: skip


def check_page(path: Path) -> Page:
    """Assert that a page needs nothing else, runs nothing but its own, and return it."""
    page = Page(path)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources())
    assert "http" not in page.text.replace("http-equiv", "")
    assert "url(" not in page.text and "@import" not in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    (policy,) = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    script = re.search(r"<script>(.*)</script>", page.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "Research use only, never a diagnosis." in page.words
    return page


@pytest.mark.parametrize("world", WORLDS)
def test_every_world_has_its_page_and_figures(world, tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)  # it is not looked at
    table = WORLDS[world].reset_index(drop=True)
    pack = pack_of(tmp_path / "a.h5", table)
    write_report(evaluation_of(table), tmp_path / "out", pack=pack, history=HISTORY)
    page = check_page(tmp_path / "out" / "report.html")
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in FIGURE_NAMES for kind in ("png", "svg")}
    assert len(page.sources()) == len(FIGURE_NAMES)
    for word in (">nan<", ">None<", ">NaN<"):
        assert word not in page.text


def test_what_a_file_says_is_text(tmp_path):
    table = WORLDS["odd names"].reset_index(drop=True)
    method = {"checkpoint": f"{HOSTILE}.pt", "architecture": "</title><script>alert(2)</script>"}
    evaluation = evaluation_of(table, method=method, command=["wsi-idc", HOSTILE])
    evaluation = replace(evaluation, notes=(HOSTILE,))
    pack = pack_of(tmp_path / "a.h5", table)
    write_report(evaluation, tmp_path, pack=pack, history=None)
    page = check_page(tmp_path / "report.html")
    assert page.words.count(HOSTILE) == 2  # the patient and the note
    assert f"wsi-idc '{HOSTILE}'" in page.words
    assert HOSTILE not in page.text
    assert not (tmp_path / "figures" / "learning_curves.png").exists()


def test_the_page_says_what_was_measured(tmp_path):
    evaluation = evaluation_of(FEW)
    write_evaluation_page(evaluation, tmp_path / "report.html", {})
    page = check_page(tmp_path / "report.html")
    headline = page.words[page.words.index("F1") + 1 :]
    assert next(word for word in headline if word.strip()) == "0.667"
    assert "at 55.6 % IDC" in page.text
    rows = re.findall(r'<bdi>(\w)</bdi></td><td data-value="(\d+)"', page.text)
    assert rows == [("a", "5"), ("b", "4")]


def test_a_value_that_is_none_sorts_as_nothing(tmp_path):
    table = patches("a", "00", [0.1, 0.2])
    write_evaluation_page(evaluation_of(table), tmp_path / "report.html", {})
    text = (tmp_path / "report.html").read_text()
    assert f'<td data-value="">{NONE}</td>' in text
    assert '<td data-value="0.0">0.0 %</td>' in text


def test_provenance_tells_one_checkpoint_from_several():
    alone = dict(describe_provenance(evaluation_of(FEW)))
    assert alone["Threshold"] == "0.5000, set on val patients when it was trained"
    assert alone["Checkpoint"] == "best.pt, cnn-bn, patches of 50 px at 4 µm/px"
    assert alone["Smoothing"] == "no"
    several = evaluation_of(
        WORLDS["smoothed"], method={"ensemble": [METHOD, METHOD | {"checkpoint": "b.pt"}]}
    )
    words = dict(describe_provenance(several))
    assert words["Checkpoint 2"].startswith("b.pt, ")
    assert words["Threshold"].startswith("0.5000, mean of the checkpoints' thresholds")
    assert words["Smoothing"] != "no"


def test_a_run_is_evaluated_with_its_curves_and_an_old_page_goes(trained, cohort, tmp_path):
    method, out = Predictor((trained,)), tmp_path / "eval"
    how = {
        "split": "test",
        "device_config": select_device("cpu"),
        "batch_size": 32,
        "num_resamples": 20,
    }
    evaluation, folder = evaluate_into(out, method, cohort, **how)
    assert folder == out
    check_page(out / "report.html")
    assert (out / "figures" / "learning_curves.svg").exists()
    written = json.loads((out / "metrics.json").read_text())
    assert written["num_patches"] == evaluation.num_patches
    evaluate_into(out, method, cohort, with_report=False, **how)
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left == {"metrics.json", "patients.csv", "predictions.csv"}
    # A checkpoint that was copied out of its run has no history beside it.
    copied = tmp_path / "copy.pt"
    evaluate_into(out, Predictor((replace(trained, source=copied),)), cohort, **how)
    assert not (out / "figures" / "learning_curves.svg").exists()
    assert (out / "report.html").exists()
