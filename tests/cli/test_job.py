"""`wsi-idc job`, `submit` and `status`; every job of the project at smoke size."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand
from tests.packs import make_small_cohort
from tests.slides.tiffs import noise, write_tiff
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.training.runs import Run

JOBS = Path(__file__).parents[2] / "jobs"
TRAIN = 'command = "train"\n[config]\nepochs = 1\nmodel = "cnn"\nsplit = "ratio:50/25/25"\n'
SMALL = ["--epochs", "1", "--weights", "none", "--input-size", "64", "--freeze", "1"]
SPLIT = "patient,split\np0,test\np1,val\np2,val\np3,train\np4,train\np5,train\n"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures of a training, which take longer than the training."""
    for name in ("draw_curves", "save_png", "augmented_samples"):
        monkeypatch.setattr(f"wsi_idc.training.logger.{name}", lambda *_, **__: None)


@pytest.fixture
def work(work: Path) -> Path:
    """Add the project's jobs to the working folder."""
    (work / "data/cohort.h5").rename(work / "data/idc.h5")
    shutil.copytree(JOBS, work / "jobs")
    return work


def test_count_and_dry_run_only_print(work: Path, command: RunCommand):
    result = command("job", "jobs/cv5.toml", "--count")
    assert (result.code, result.out, result.err) == (0, "5\n", "")
    result = command("job", "jobs/map_all.toml", "--dry-run", "--device", "cpu", "--no-image")
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("wsi-idc map --all --out maps ")
    assert " --no-image " in lines[1]
    assert lines[1].endswith(" --shard 2/4 --device cpu")
    result = command("job", "jobs/map_all.toml", "--dry-run", "--task", "3")
    assert [line.split()[-1] for line in result.out.splitlines()] == ["3/4"]
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("map_all", ("--patient", "S0001")),
        ("slides", ("--slide", "a.svs", "--slide", "b.svs")),
        ("slides", ("--all",)),
    ],
)
def test_inputs_of_map_replace_those_of_the_file(
    work: Path, command: RunCommand, job: str, flags: tuple[str, ...]
):
    result = command("job", f"jobs/{job}.toml", "--dry-run", "--task", "1", *flags)
    words = set(result.out.split())
    assert words >= set(flags)
    assert words & {"--all", "--patient", "--slide", "--manifest"} <= set(flags)


def test_wrong_usage_is_one_line(work: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    for words, code, message in (
        ("job jobs/cv5.toml --task 6", 1, "jobs/cv5.toml: no task 6; the job has tasks 1 to 5"),
        ("job jobs/cv5.toml --epoch 3", 2, "No such option"),
        ("job jobs/cv5.toml --json", 2, "--json needs one task"),
        ("job --device cpu jobs/cv5.toml", 2, "give JOB first"),
        ("submit jobs/cv5.toml --on slurm", 1, "sbatch is not installed"),
    ):
        result = command(*words.split())
        assert result.code == code
        assert result.error.startswith(f"Error: {message}")


def test_tasks_run_in_turn_and_failed_ones_are_listed(work: Path, command: RunCommand):
    (work / "three.toml").write_text(TRAIN + '[axes]\nweights = ["none", "no.pt"]\nseed = [0]\n')
    result = command("job", "three.toml", "--device", "cpu")
    assert result.code == 1
    assert "task 1 of 2: wsi-idc train --epochs 1 " in result.err
    assert "task 2 failed: " in result.err
    assert result.error == "Error: 1 of 2 tasks failed: 2; the reasons are above"
    assert (work / "runs/three-none-0/best.pt").exists()

    result = command("status", "three.toml")
    assert result.out.splitlines() == [
        "task 1   runs/three-none-0   finished     best epoch 1",
        "task 2   runs/three-no.pt-0  not begun",
        "1 of 2 finished",
    ]


def test_a_stopped_task_ends_the_job_and_the_same_command_resumes_it(
    work: Path, command: RunCommand
):
    (work / "two.toml").write_text(TRAIN.replace("epochs = 1", "epochs = 2") + "[axes]\nseed=[0,1]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi_idc.training.train._finish_epoch", _stop_after(1))
        result = command("job", "two.toml", "--device", "cpu")
    assert result.code == 75
    result = command("status", "two.toml", "--json")
    tasks = json.loads(result.out)["tasks"]
    assert [task["state"] for task in tasks] == ["stopped", "not begun"]
    assert tasks[0]["detail"].startswith("1 of 2 epochs, val AP ")
    assert command("job", "two.toml", "--device", "cpu").code == 0
    assert "2 of 2 finished" in command("status", "two.toml").out


def _stop_after(epochs: int):
    from wsi_idc.training.train import _finish_epoch

    def closing(training: object, *others: object) -> None:
        _finish_epoch(training, *others)  # type: ignore[arg-type]
        if training.state.epoch == epochs:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGUSR1)

    return closing


def test_unfinished_runs_are_named_once(
    work: Path, trained: Checkpoint, command: RunCommand, caplog
):
    for name, status in (("a", "finished"), ("b", "running")):
        save_checkpoint(work / "runs" / name / "best.pt", trained)
        Run(work / "runs" / name).write(status, {}, {})
    (work / "all.toml").write_text('command = "eval"\n[config]\nruns = ["runs/*"]\n')
    result = command("job", "all.toml", "--no-report", "--num-resamples", "100")
    assert result.code == 0, result.err
    named = [message for message in caplog.messages if message.startswith("unfinished")]
    assert named == ["unfinished runs are left out: runs/b"]


def test_a_job_runs_in_the_background(work: Path, command: RunCommand):
    (work / "one.toml").write_text(TRAIN)
    result = command("submit", "one.toml", "--on", "local", "--device", "cpu")
    assert result.code == 0, result.err
    assert result.out.splitlines()[1] == "log      logs/one.out"
    end = time.monotonic() + 120
    while "1 of 1 finished" not in command("status", "one.toml").out:
        assert time.monotonic() < end, (work / "logs/one.out").read_text()
        time.sleep(0.5)
    assert result.err == ""
    resources = ("--time", "1:00:00", "--gpus", 2, "--sbatch", "--qos=long")
    result = command("submit", "one.toml", "--on", "local", "--dry-run", *resources)
    assert result.out.startswith("wsi-idc train --epochs 1 ")
    notes = result.err.splitlines()
    assert notes[0] == "these flags have an effect only on SLURM: --time, --gpus, --sbatch"
    assert notes[1:] == ["where  this machine, in the background", "log    logs/one.out"]


def test_a_dry_run_without_slurm_shows_where_the_job_would_run(
    work: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
):
    (work / "one.toml").write_text(TRAIN)
    (work / "three.toml").write_text(TRAIN + "[axes]\nseed = [0, 1, 2]\n")
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", "")
    before = sorted(work.rglob("*"))
    result = command("submit", "one.toml", "--dry-run")
    assert result.code == 0
    assert result.out.startswith("wsi-idc train --epochs 1 ")
    assert result.err.splitlines() == [
        "where  this machine, in the background, because sbatch is not installed; --on",
        "       slurm shows the script for SLURM",
        "log    logs/one.out",
    ]
    flags = ("--on", "slurm", "--dry-run")
    result = command("submit", "three.toml", *flags, "--time", "1:00:00", "--sbatch", "--qos=long")
    assert result.code == 0
    assert result.out.startswith("#!/usr/bin/env bash\n")
    assert result.err.splitlines() == [
        "where    SLURM, the default partition of SLURM; sbatch is not installed here",
        "time     at most 1:00:00 for each of 3 tasks",
        "log      logs/three-JOB_TASK.out",
        "command  sbatch --time=1:00:00 --qos=long logs/three.sbatch",
    ]
    # Values of the site replace defaults, and flags replace values of the site.
    monkeypatch.setenv("PATH", path)
    (work / "slurm").mkdir()
    (work / "slurm/site.env").write_text(
        "echo welcome\nexport SBATCH_PARTITION=gpu\r\nexport SBATCH_TIMELIMIT=2:00:00\n"
    )
    result = command("submit", "one.toml", *flags)
    assert "partition gpu" in result.err
    assert "at most 2:00:00" in result.err
    assert "log      logs/one-JOB.out" in result.err
    result = command("submit", "one.toml", *flags, "--partition", "long", "--time", "3:00:00")
    assert "partition long" in result.err
    assert "at most 3:00:00" in result.err
    assert sorted(path for path in work.rglob("*") if "slurm" not in path.parts) == before


def reduce(path: Path, axes: str) -> None:
    """Leave a search two trials of one epoch."""
    text = path.read_text()
    kept = [line for line in text.split("\n[axes]")[0].splitlines() if "epochs =" not in line]
    body = "\n".join(kept).replace("[config]", "[config]\nepochs = 1")
    path.write_text(f"{body}\n[axes]\n{axes}\n")


@pytest.mark.slow
def test_every_job_of_the_project_runs_at_a_small_size(
    tmp_path: Path, tree: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
):
    make_small_cohort(tmp_path / "data/idc.h5", num_patients=6)
    shutil.copytree(JOBS, tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    done = set()

    def job(name: str, *flags: str) -> None:
        result = command("job", f"jobs/{name}.toml", *flags)
        assert result.code == 0, result.err
        done.add(name)

    job("cv5", *SMALL, "--task", "2")
    Path("jobs/bundled/fold0.csv").write_text(SPLIT)
    job("bundled", *SMALL, "--task", "2")
    job("baseline", *SMALL, "--task", "1")
    for name in ("train", "smoke", "train_resnet50", "train_all_models"):
        job(name, *SMALL[: 2 if name == "train" else None], "--split", "ratio:50/25/25")
    job("encoders", *SMALL, "--freeze", "all", "--split", "ratio:50/25/25", "--task", "1")
    # Overrides are part of the names of the runs.
    assert Path("runs/train-split-ratio-50-25-25-epochs-1").exists()
    assert len(list(tmp_path.glob("runs/train_all_models-*/best.pt"))) == 5
    for name in ("eval_all", "eval"):
        job(name, "--num-resamples", "100", "--no-report")
    job("map_all", "--no-cam")
    reduce(Path("jobs/search.toml"), "learning_rate = [1e-3, 1e-2]")
    job("search", "--device", "cpu")
    reduce(Path("jobs/imbalance.toml"), 'imbalance = ["none", "focal"]')
    job("imbalance")
    job("report", "maps/p0.h5")
    Path("data/idc.h5").unlink()
    job("prepare", str(tree))
    write_tiff(Path("s.tif"), noise(200, 150), mpp=4)
    Path("slides.csv").write_text("slide\ns.tif\n")
    job("slides", "--checkpoint", "bundled")
    assert "4 of 4 finished" in command("status", "jobs/slides.toml").out
    assert done == {path.stem for path in JOBS.glob("*.toml")}
