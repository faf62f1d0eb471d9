import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import HOSTILE, check_page, evaluation_of, pack_of, patches
from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.report import FIGURE_NAMES, evaluate_into, read_history, write_report
from wsi_idc.inference.predictor import Predictor
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device

SMOOTHED = pd.concat(
    [patches("a", "00011", [0.1, 0.6, 0.2, 0.9, 0.3]), patches("b", "0111", [0.4, 0.8, 0.7, 0.2])]
)
SMOOTHED["probability_smoothed"] = SMOOTHED["probability"].to_numpy()[::-1]
WORLDS = {
    "smoothed": SMOOTHED,
    "one patch": patches("a", "1", [0.9]),
    "no IDC": pd.concat([patches("a", "00", [0.1, 0.9]), patches("b", "00", [0.2, 0.3])]),
    "all equal": pd.concat([patches("a", "01", [0.5, 0.5]), patches("b", "10", [0.5, 0.5])]),
    "all correct and certain": patches("a", "0011", [0, 0, 1, 1]),
}
HISTORY = [{"epoch": 1, "val_auc": 0.7, "train_loss": 0.6}, {"epoch": 2, "val_auc": 0.8}]


@pytest.fixture(autouse=True)
def _low_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: these tests do not look at pixels."""
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)


@pytest.mark.parametrize("world", WORLDS)
def test_a_report_has_its_page_and_all_figures(world: str, tmp_path: Path):
    table = WORLDS[world].reset_index(drop=True)
    pack = pack_of(tmp_path / "a.h5", table)
    write_report(evaluation_of(table), tmp_path / "out", pack=pack, history=HISTORY)
    page = check_page(tmp_path / "out" / "report.html")
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in FIGURE_NAMES for kind in ("png", "svg")}
    assert len(page.sources()) == len(FIGURE_NAMES)


def test_texts_from_files_are_escaped(tmp_path: Path):
    table = pd.concat([patches(HOSTILE, "01", [0.9, 0.1]), patches("患者$_{", "01", [1, 0])])
    table = table.reset_index(drop=True)
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
    assert remaining == {"metrics.json", "patients.csv", "predictions.csv"}


def test_only_a_single_checkpoint_in_its_run_has_a_history(trained: Checkpoint, tmp_path: Path):
    copied = replace(trained, source=tmp_path / "copy.pt", fingerprint="copy")
    assert [record["epoch"] for record in read_history(Predictor((trained,)))] == [1, 2]
    assert read_history(Predictor((copied,))) is None
    assert read_history(Predictor((trained, copied))) is None
