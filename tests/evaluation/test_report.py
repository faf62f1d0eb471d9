import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import (
    HOSTILE,
    METHOD,
    TWO_PATIENTS,
    check_page,
    evaluation_of,
    pack_of,
    patches,
)
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.cam_quality import CamQuality
from wsi_idc.evaluation.report import (
    FIGURE_NAMES,
    evaluate_into,
    read_history,
    write_evaluation_page,
    write_report,
)
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.plotting.number_format import NONE
from wsi_idc.runtime.device import select_device

pytestmark = pytest.mark.usefixtures("low_resolution")
REVERSED = TWO_PATIENTS["probability"].to_numpy()[::-1]
WORLDS = {
    "smoothed": TWO_PATIENTS.assign(probability_smoothed=REVERSED),
    "one patch": patches(("a", "1", [0.9])),
    "no IDC": patches(("a", "00", [0.1, 0.9]), ("b", "00", [0.2, 0.3])),
    "all equal": patches(("a", "01", [0.5, 0.5]), ("b", "10", [0.5, 0.5])),
    "all correct and certain": patches(("a", "0011", [0, 0, 1, 1])),
}
CHANGES = pd.DataFrame({"change": ["a"], "auc": 0.9, "sensitivity": 0.8, "mean_novelty": 0.5})
CURVE = pd.DataFrame({"fraction": [0.2], "top": [0.7], "random": [-0.2]})
CAM = CamQuality("gradcam", (6, 6), 1, 1, 0.9, 0.9, 0.3, 0.0, 0.9, CURVE)
HISTORY = [{"epoch": 1, "val_auc": 0.7, "train_loss": 0.6}, {"epoch": 2, "val_auc": 0.8}]


@pytest.mark.parametrize("world", WORLDS)
def test_a_report_has_its_page_and_all_figures(world: str, tmp_path: Path):
    table = WORLDS[world].assign(novelty=0.5)
    pack = pack_of(tmp_path / "a.h5", table)
    evaluation = replace(evaluation_of(table), robustness=CHANGES, cam=CAM)
    write_report(evaluation, tmp_path / "out", pack=pack, history=HISTORY)
    page = check_page(tmp_path / "out" / "report.html")
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in FIGURE_NAMES for kind in ("png", "svg")}
    assert len(page.sources()) == len(FIGURE_NAMES)


def test_texts_from_files_are_escaped(tmp_path: Path):
    table = patches((HOSTILE, "01", [0.9, 0.1]), ("患者$_{", "01", [1, 0]))
    method = {"checkpoint": f"{HOSTILE}.pt", "architecture": "</title><script>alert(2)</script>"}
    evaluation = evaluation_of(table, method=method, command=["wsi-idc", HOSTILE])
    evaluation = replace(evaluation, notes=(HOSTILE,))
    write_report(evaluation, tmp_path, pack=pack_of(tmp_path / "a.h5", table), history=None)
    page = check_page(tmp_path / "report.html")
    assert page.words.count(HOSTILE) == 2  # the patient and the note
    assert f"wsi-idc '{HOSTILE}'" in page.words
    assert HOSTILE not in page.text
    assert not (tmp_path / "figures" / "learning_curves.png").exists()


def test_a_run_is_evaluated_with_its_curves_and_an_old_page_is_removed(
    trained: Checkpoint, cohort: Pack, tmp_path: Path
):
    predictor, out = Predictor((trained,)), tmp_path / "eval"
    settings = {"split": "test", "device_config": select_device("cpu"), "batch_size": 32}
    settings["num_resamples"] = 20
    evaluation, folder = evaluate_into(out, predictor, cohort, **settings)
    assert folder == out
    check_page(out / "report.html")
    assert (out / "figures" / "learning_curves.svg").exists()
    assert json.loads((out / "metrics.json").read_text())["num_patches"] == evaluation.num_patches
    evaluate_into(out, predictor, cohort, with_report=False, **settings)
    remaining = {path.name for path in out.rglob("*") if path.is_file()}
    assert remaining == {"metrics.json", "patients.csv", "predictions.csv", "novelty.csv"}


def test_only_a_single_checkpoint_in_its_run_has_a_history(trained: Checkpoint, tmp_path: Path):
    copied = replace(trained, source=tmp_path / "copy.pt", fingerprint="copy")
    assert [record["epoch"] for record in read_history(Predictor((trained,)))] == [1, 2]
    assert read_history(Predictor((copied,))) is None
    assert read_history(Predictor((trained, copied))) is None


def test_the_page_shows_the_metrics(tmp_path: Path):
    write_evaluation_page(evaluation_of(TWO_PATIENTS), tmp_path / "report.html", {})
    page = check_page(tmp_path / "report.html")
    headline = page.words[page.words.index("F1") + 1 :]
    assert next(word for word in headline if word.strip()) == "0.667"
    assert "at 55.6 % IDC" in page.text
    rows = re.findall(r'>(\w)</a></bdi></td><td data-value="(\d+)"', page.text)
    assert rows == [("a", "5"), ("b", "4")]


def test_an_undefined_value_is_sorted_as_empty(tmp_path: Path):
    table = patches(("a", "00", [0.1, 0.2]))
    write_evaluation_page(evaluation_of(table), tmp_path / "report.html", {})
    text = (tmp_path / "report.html").read_text()
    assert f'<td data-value="">{NONE}</td>' in text
    assert '<td data-value="0.0">0.0 %</td>' in text


def provenance_of(evaluation: Evaluation, path: Path) -> dict[str, str]:
    """Return the texts of the card of predictor and data, by title."""
    write_evaluation_page(evaluation, path, {})
    return dict(re.findall(r"<dt>(.*)</dt><dd>(.*)</dd>", html.unescape(path.read_text())))


def test_provenance_of_one_checkpoint_and_of_an_ensemble(tmp_path: Path):
    single = provenance_of(evaluation_of(TWO_PATIENTS), tmp_path / "a.html")
    assert single["Patients"] == "test: test patients of the checkpoint's split, 2"
    assert single["Threshold"] == "0.5000, set on val patients when it was trained"
    assert single["Checkpoint"] == "best.pt, cnn-bn, patches of 50 px at 4 µm/px"
    assert single["Smoothing"] == "no"
    assert single["Intervals"] == "95 %, 20 resamples of patients, seed 0"
    members = [METHOD, METHOD | {"checkpoint": "b.pt"}]
    smoothed = TWO_PATIENTS.assign(probability_smoothed=TWO_PATIENTS["probability"])
    evaluation = evaluation_of(smoothed, method={"ensemble": members})
    ensemble = provenance_of(replace(evaluation, num_unknown=3), tmp_path / "b.html")
    assert ensemble["Patches"] == "9; 3 of unknown label left out"
    assert ensemble["Checkpoint 2"].startswith("b.pt, ")
    assert ensemble["Ensemble"] == "mean probability of 2 checkpoints"
    assert ensemble["Threshold"].startswith("0.5000, mean of the checkpoints' thresholds")
    assert ensemble["Threshold"].endswith(", for smoothed probabilities")
    assert ensemble["Smoothing"] != "no"
