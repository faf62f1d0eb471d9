import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import RunCommand
from tests.packs import names
from wsi_idc.core.metric_table import THRESHOLD_METRICS
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_idc.models.smoothing import Smoothing
from wsi_idc.training.runs import Run


@pytest.fixture
def work(work: Path, trained: Checkpoint) -> Path:
    """Add two finished runs to the working folder."""
    smoothing = Smoothing(sigma_um=300.0, temperature=1.5, threshold=0.6)
    other = replace(trained, temperature=2.0, threshold=0.9, smoothing=smoothing)
    for name, checkpoint in (("a", trained), ("b", other)):
        save_checkpoint(work / "runs" / name / "best.pt", checkpoint)
        Run(work / "runs" / name).write("finished", {}, {})
    return work


QUICK = ("--num-resamples", 100, "--no-report")


def test_every_metric_has_an_interval(work: Path, command: RunCommand):
    result = command("eval", "--checkpoint", "runs/a", *QUICK)
    assert result.code == 0, result.err
    for name in ("auc", "mcc", "ece", "npv", "brier"):
        assert any(line.startswith(name) and "[" in line for line in result.out.splitlines()), name
    assert "of a patient        mean  95 % interval     median  smallest  largest" in result.out
    threshold = load_checkpoint(work / "runs/a/best.pt").threshold
    lines, at = result.out.splitlines(), f"  at the threshold {threshold:.3f}"
    assert [line.split()[0] for line in lines if at in line] == list(THRESHOLD_METRICS)
    assert f"  at {threshold:.3f}" in next(line for line in lines if "dice" in line)
    words = " ".join(command("info", "runs/a").out.split())
    assert f"; at the threshold {threshold:.4g}: balanced_accuracy 0." in words
    assert max(map(len, result.out.splitlines())) <= 80
    assert "written to runs/a/eval-test" in result.out


@pytest.mark.parametrize("flags", [(), ("--tta", "--smooth")])
def test_eval_and_map_agree(
    work: Path, trained: Checkpoint, command: RunCommand, flags: tuple[str, ...]
):
    both = ("--checkpoint", "runs/a", "--checkpoint", "runs/b", *flags)
    result = command("eval", *both, "--out", "e", *QUICK)
    assert result.code == 0, result.err
    patients = [word for name in trained.patients("test") for word in ("--patient", name)]
    assert command("map", *patients, *both).code == 0
    table = pd.read_csv("e/predictions.csv", dtype={"patient": str})
    columns = {"probability": "probability", "uncertainty": "uncertainty"}
    if "--smooth" in flags:
        columns |= {"probability": "probability_unsmoothed", "probability_smoothed": "probability"}
    for patient, part in table.groupby("patient"):
        with h5py.File(f"maps/{patient}.h5") as file:
            for name, dataset in columns.items():
                np.testing.assert_array_equal(part[name].astype(np.float32), file[dataset][:])
    assert set(table["patient"]) == trained.patients("test")


def test_changed_patches_are_a_table_that_the_next_evaluation_removes(
    work: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
):
    changes = {"white": lambda patches: np.full_like(patches, 255)}
    monkeypatch.setattr("wsi_idc.evaluation.robustness.PERTURBATIONS", changes)
    result = command("eval", "--checkpoint", "runs/a", *QUICK, "--robustness", "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["robustness"]
    table = pd.read_csv("runs/a/eval-test/robustness.csv")
    assert [row["change"] for row in rows] == table["change"].tolist() == ["unchanged", "white"]
    assert rows[1]["cautions"] == 1
    result = command("eval", "--checkpoint", "runs/a", *QUICK, "--robustness")
    assert "white               0.500" in result.out
    changed = result.out.partition("changed patches")[2].partition("note:")[0]
    assert changed.startswith(", called at the threshold 0.")
    assert max(map(len, f"changed patches{changed}".splitlines())) <= 80
    assert command("eval", "--checkpoint", "runs/a", *QUICK).code == 0
    assert not Path("runs/a/eval-test/robustness.csv").exists()


def test_cam_quality_is_in_the_metrics(work: Path, command: RunCommand):
    result = command("eval", "--checkpoint", "runs/a", *QUICK, "--cam", "--no-report")
    assert result.code == 0, result.err
    lines = result.out.partition("CAM (")[2].partition("note:")[0].splitlines()
    assert lines[0].startswith("gradcam at the last feature map, ")
    assert [line[:4] for line in lines[1:6]] == ["fall", "area", "brig", "exce", "stab"]
    assert len("CAM (" + lines[0]) <= 80 and max(map(len, lines)) <= 80
    cam = json.loads(Path("runs/a/eval-test/metrics.json").read_text())["cam"]
    assert f"{cam['fall']:.2f}   largest fifth" in lines[1]


def test_several_runs_make_a_leaderboard(work: Path, command: RunCommand):
    result = command("eval", "runs/a", "runs/b", "--rank-by", "brier", *QUICK)
    assert result.code == 0, result.err
    assert "published results, measured on other patients" in result.out
    assert "Cruz-Roa" in result.out
    assert "rank  brier    auc     f1  balanced_accuracy  threshold  name" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    table = pd.read_csv("eval/leaderboard-test/leaderboard.csv")
    ours = table[table["source"] == "measured"]
    assert set(ours["name"]) == {"runs/a", "runs/b"}
    assert ours["brier"].is_monotonic_increasing
    assert (work / "runs" / "a" / "eval-test" / "metrics.json").exists()
    found = json.loads(command("eval", "runs/a", "runs/b", *QUICK, "--json").out)
    assert found["same_patients"] is True
    assert len(found["leaderboard"]) == len(table)


def test_a_bad_run_is_listed_at_the_end_and_the_others_are_ranked(
    work: Path, trained: Checkpoint, command: RunCommand
):
    strange = replace(trained, split=dict.fromkeys(trained.split, "train"))
    save_checkpoint(work / "runs/c/best.pt", strange)
    (work / "runs/b").rename(work / "runs/v1.2")
    runs = ("runs/none", "runs/a", "runs/c", "runs/v1.2", "runs/a")
    result = command("eval", *runs, "--out", "e", *QUICK)
    assert result.code == 1
    assert result.error == "Error: 2 of 4 runs are not evaluated; the reasons are above"
    reasons = [line for line in result.err.splitlines() if "is not evaluated" in line]
    assert [reason.split(":")[0] for reason in reasons] == [
        *("runs/none is not evaluated", "runs/c is not evaluated")
    ]
    assert "none of the test patients of the checkpoint" in reasons[1]
    assert result.err.count("checkpoint: runs/a/best.pt") == 1
    files = ("leaderboard.csv", "leaderboard.html", "leaderboard.json")
    assert names(Path("e")) == ["2-a", "4-v1.2", "figures", *files]
    table = pd.read_csv("e/leaderboard.csv")
    assert set(table[table["source"] == "measured"]["name"]) == {"runs/a", "runs/v1.2"}

    result = command("eval", *runs, "--out", "e", *QUICK, "--json")
    assert result.code == 1
    assert set(json.loads(result.out)["failed"]) == {"runs/none", "runs/c"}
    result = command("eval", "runs/none", "runs/c", *QUICK)
    assert (result.code, result.out) == (1, "")
    assert result.error == "Error: 2 of 2 runs are not evaluated; the reasons are above"
    assert not (work / "eval").exists()


def test_wrong_names_of_runs_are_noted_before_a_patch_tree_is_packed(
    work: Path, command: RunCommand
):
    result = command("eval", "runs/x", "runs/y", "--data", "nodata")
    assert result.error == "Error: 2 of 2 runs are not evaluated; the reasons are above"
    assert [line.split(":")[0] for line in result.err.splitlines() if "no such file" in line] == [
        *("runs/x is not evaluated", "runs/y is not evaluated")
    ]
    result = command("eval", "runs/a", "runs/x", "--data", "nodata")
    assert "runs/x: no such file" in result.err
    assert result.error.startswith("Error: nodata: ")


def test_two_runs_are_compared_and_evaluated_first(work: Path, command: RunCommand):
    result = command("compare", "runs/a", "runs/b", "--num-resamples", 100, "--out", "c")
    assert result.code == 0, result.err
    for name, run in (("A", "runs/a"), ("B", "runs/b")):
        threshold = load_checkpoint(Path(run) / "best.pt").threshold
        assert f"{name}: {run}/eval-test, threshold {threshold:.3f}" in result.out
        assert (
            f"{run}</bdi>, threshold {threshold:.3f}</dd>" in Path("c/comparison.html").read_text()
        )
    assert "95 % interval" in result.out
    # Only the temperature differs, so the ranking is the same.
    table = pd.read_csv("c/metrics.csv").set_index("metric")
    assert table.loc["auc", "difference"] == pytest.approx(0, abs=1e-6)
    assert table.loc["brier", "difference"] != 0
    both = ("compare", "runs/a/eval-test", "runs/b/eval-test", "--split", "test")
    assert command(*both).code == 2
    result = command(*both, "--data", "data")
    assert "--data and --split would have no effect, because A and B are evaluations" in result.err
    before = (work / "runs/a/eval-test/metrics.json").stat().st_mtime_ns
    again = command("compare", "runs/a/eval-test", "runs/b", "--num-resamples", 100, "--json")
    assert json.loads(again.out)["num_patients"] == 2
    assert (work / "runs/a/eval-test/metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["eval", "runs/a", "--checkpoint", "runs/b"], 2, "not both"),
        (["eval", "runs/a", "--rank-by", "luck"], 2, "--rank-by must be one of auc"),
        (["eval", "runs/none"], 1, "no such file"),
        (["eval", "--checkpoint", "runs/a", "--checkpoint", "runs/a"], 1, "given twice"),
        (["eval", "runs/a", "--split", "train"], 1, "--allow-seen"),
        (["compare", "runs/a", "elsewhere"], 1, "no such file"),
        (["compare", "runs/a"], 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    work: Path, command: RunCommand, arguments: list[str], code: int, error: str
):
    result = command(*arguments)
    assert result.code == code
    assert error in result.err
    assert "Traceback" not in result.err


def test_seen_patients_are_evaluated_only_when_asked_for(work: Path, command: RunCommand):
    train = ("eval", "runs/a", "--split", "train", *QUICK)
    assert "was trained on 3 of these patients" in command(*train).error
    assert command(*train, "--allow-seen").code == 0


def test_other_files_are_not_overwritten(work: Path, command: RunCommand):
    mine = work / "mine"
    mine.mkdir()
    (mine / "report.html").write_text("of the user")
    result = command("eval", "runs/a", "--out", "mine", *QUICK)
    assert result.code == 1
    reason = "exists and was not written by this command"
    assert f"mine/report.html {reason}; give another --out" in result.err
    assert "predicting" not in result.err
    assert (mine / "report.html").read_text() == "of the user"

    assert command("eval", "runs/a", "--out", "e", *QUICK).code == 0
    assert command("eval", "runs/b", "--out", "e", *QUICK).code == 0
    before = Path("e/patients.csv").read_bytes()
    result = command("compare", "runs/a", "runs/b", "--num-resamples", 100, "--out", "e")
    assert result.code == 1
    assert f"e/patients.csv {reason}" in result.err
    assert Path("e/patients.csv").read_bytes() == before
    for _ in range(2):
        both = ("compare", "runs/a", "runs/b", "--num-resamples", 100, "--out", "c")
        assert command(*both).code == 0
    assert reason in command("eval", "runs/a", "--out", "c", *QUICK).err
    for name in ("metrics.json", "figures", "leaderboard.json"):
        (work / name).mkdir()
        (work / name / "mine.png").touch()
        both = ("runs/a", "runs/b") if name == "leaderboard.json" else ("runs/a",)
        result = command("eval", *both, "--out", ".", *QUICK)
        assert f"{name} {reason}" in result.err
        shutil.rmtree(work / name)
    Path("file").touch()
    assert "file is a file; give a folder" in command("eval", "--out", "file", *QUICK).err


def test_a_comparison_notes_seen_patients(work: Path, command: RunCommand):
    seen = ("--split", "train", "--allow-seen", *QUICK)
    assert command("eval", "runs/a", "runs/b", "--out", "e", *seen).code == 0
    result = command("compare", "e/1-a", "e/2-b", "--num-resamples", 100, "--out", "c")
    note = "a checkpoint was trained on 3 of these patients: the metrics are too good"
    assert f"note: {note}" in result.out
    few = "with fewer than 10 patients, the 95 % intervals are too narrow"
    assert few in json.loads(Path("e/1-a/metrics.json").read_text())["notes"]
    assert [line for line in result.out.splitlines() if few in line] == [f"{few} for a decision"]
    assert note in Path("c/comparison.html").read_text()
    assert note in json.loads(Path("c/comparison.json").read_text())["notes"]
