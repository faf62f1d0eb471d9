"""The SLURM scripts, on a real SLURM: to the end, through signals, preemption and failures."""

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_idc.models.checkpoint import load_checkpoint

from .conftest import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL_SEARCH = """
command = "search"
name = "small"
tasks = 2
[config]
epochs = 1
[axes]
learning_rate = [1e-3, 3e-3, 1e-2]
"""
# An epoch takes about a second, so that a signal finds it at work.
LONG = ("--epochs", "6", "--batch-size", "8", "--patience", "9")


def run_of(cluster: Cluster, name: str) -> dict:
    return json.loads((cluster.folder / "runs" / name / "run.json").read_text())


def epochs(folder: Path) -> int:
    history = folder / "metrics.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def test_signals_and_preemption_end_in_the_weights_of_an_undisturbed_run(cluster: Cluster):
    run = cluster.folder / "runs/long"
    job = cluster.sbatch("slurm/train.sh", *LONG, "--out", "runs/long")
    cluster.wait(lambda: epochs(run) >= 1, job=job)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(lambda: cluster.field(job, "Restarts") == "1", job=job)
    cluster.wait(lambda: cluster.hurry(job) or cluster.state(job) == "RUNNING", job=job)
    cluster.wait(lambda: epochs(run) >= 3, job=job)
    words = ("--partition=high", "--nodes=2", "--exclusive", "--output=high.out")
    higher = cluster.sbatch(*words, "--wrap=sleep 1")
    cluster.wait(lambda: cluster.field(job, "Restarts") == "2", job=job)
    cluster.wait_for_end(higher)
    cluster.wait_for_end(job)
    log = cluster.log(job)
    assert log.count("Stopped by SIGUSR1") == 2
    assert log.count("saved; requeued") == 2
    assert epochs(run) == 6

    cluster.run("wsi-idc", "job", "jobs/train.toml", *LONG, "--out", "runs/alone")
    ours, other = (
        load_checkpoint(cluster.folder / "runs" / name / "best.pt") for name in ("long", "alone")
    )
    assert ours.state.keys() == other.state.keys()
    assert all(ours.state[name].equal(other.state[name]) for name in ours.state)
    assert (ours.threshold, ours.temperature) == (other.threshold, other.temperature)


def in_two_tasks(cluster: Cluster) -> None:
    """Let the job that maps all patients have two tasks, to save two starts of the program."""
    job = cluster.folder / "jobs/map_all.toml"
    job.write_text(job.read_text().replace("tasks = 4 ", "tasks = 2 "))


def test_an_array_of_maps_with_one_task_killed_and_run_again(cluster: Cluster):
    in_two_tasks(cluster)
    job = cluster.sbatch("--array=1-2", "slurm/map.sh", "--no-image")
    cluster.wait(lambda: cluster.state(f"{job}_2") == "RUNNING", job=job)
    # No other test has these flags.
    killed = ["pkill", "--signal", "KILL", "--full", "job jobs/map_all.toml --task=2 --no-image"]
    cluster.wait(lambda: subprocess.run(killed, check=False).returncode == 0, job=job)
    cluster.wait_for_end(f"{job}_1")
    cluster.wait_for_end(f"{job}_2", "FAILED")
    maps = cluster.folder / "maps"
    assert len(list(maps.glob("[!c]*.h5"))) >= 4  # of the killed task, what it had done

    again = cluster.sbatch("--array=2", "slurm/map.sh", "--no-image")
    cluster.wait_for_end(f"{again}_2")
    whole = cluster.folder / "whole"
    cluster.run("wsi-idc", "map", "--all", "--no-image", "--out", str(whole))
    found = sorted(path.name for path in maps.glob("[!c]*.h5"))
    assert found == sorted(path.name for path in whole.glob("[!c]*.h5"))
    for name in found:
        with h5py.File(maps / name) as ours, h5py.File(whole / name) as other:
            np.testing.assert_array_equal(ours["probability"][:], other["probability"][:])
    assert not list(maps.glob(".*.partial"))
    assert "2 of 2 finished" in cluster.run("wsi-idc", "status", "jobs/map_all.toml")


TWO = 'command = "train"\n[config]\nepochs = 6\nbatch_size = 8\n[axes]\nseed = [0, 1]\n'


def test_a_task_is_requeued_a_limited_number_of_times_and_not_after_its_cancellation(
    cluster: Cluster,
):
    (cluster.folder / "jobs/two.toml").write_text(TWO)
    (cluster.folder / "slurm/site.env").write_text("export WSI_IDC_MAX_RESTARTS=1\n")
    array = cluster.sbatch("--array=1-2", "slurm/train.sh", "jobs/two.toml")
    tasks, runs = (f"{array}_1", f"{array}_2"), cluster.folder / "runs"
    for name in ("two-0", "two-1"):
        cluster.wait(lambda run=name: epochs(runs / run), job=array)
    # The last task has the array's own number.
    cluster.run("scancel", "--signal=USR1", tasks[1])
    cluster.run("scancel", tasks[0])
    cluster.wait(lambda: cluster.field(tasks[1], "Restarts") == "1", job=array)
    cluster.wait_for_end(tasks[0], "CANCELLED")
    assert cluster.field(tasks[0], "Restarts") == "0"
    assert "saved in" in cluster.log(cluster.field(tasks[0], "JobId"))

    before = epochs(runs / "two-1")
    cluster.wait(lambda: cluster.hurry(tasks[1]) or epochs(runs / "two-1") > before, job=array)
    cluster.run("scancel", "--signal=USR1", tasks[1])
    cluster.wait_for_end(tasks[1], "FAILED")
    assert "not requeued after 1 restarts" in cluster.log(cluster.field(tasks[1], "JobId"))
    assert cluster.field(tasks[1], "ExitCode") == "75:0"


INNER = "sbatch --parsable {flags} slurm/train.sh --device cpu >inner"
# A plain job, and the same job from inside a step or another job, whose variables it inherits.
OUTER = {
    "login shell": ["bash", "-c"],
    "task of an array": ["sbatch", "--wait", "--array=3", "--mem=500", "--output=o", "--wrap"],
    "step of one core": ["srun", "-n1", "-c1", "--mem=500", "bash", "-c"],
    "step of two tasks": ["srun", "-n2", "-c1", "--mem=500", "bash", "-c"],
    "job of two tasks": ["sbatch", "--wait", "-n2", "-c1", "--mem=500", "--output=o", "--wrap"],
    "job of two nodes": [
        *("sbatch", "--wait", "-N2", "--ntasks-per-node=1", "--mem=500", "--gres=gpu:1"),
        *("--output=o", "--wrap"),
    ],
}


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
def test_a_job_from_inside_a_job_has_its_own_cores(binding_cluster: Cluster, outer: list[str]):
    cluster = binding_cluster
    inner = INNER.format(flags="--cpus-per-task=2")
    cluster.run(*outer, f"[ ${{SLURM_PROCID:-0}} != 0 ] || {inner}")
    job = (cluster.folder / "inner").read_text().strip()
    cluster.wait_for_end(job)
    assert "rank 0 of 1 on" in cluster.log(job)
    assert "cores 0-1, 2 asked" in cluster.log(job)
    assert (
        "restarts 0, SITE none, MARK venv, words job jobs/train.toml --device cpu"
        in cluster.log(job)
    )


def test_a_job_beside_the_step_that_submitted_it_has_the_other_core(binding_cluster: Cluster):
    inner = INNER.format(flags="--wait --nodelist=n1 --cpus-per-task=1")
    step = ("srun", "--nodelist=n1", "-n1", "-c1", "--mem=500", "bash", "-c")
    binding_cluster.run(*step, f"grep Cpus_allowed_list /proc/self/status >outer; {inner}")
    outer = (binding_cluster.folder / "outer").read_text().split()[1]
    job = (binding_cluster.folder / "inner").read_text().strip()
    assert f"cores {1 - int(outer)}, 1 asked" in binding_cluster.log(job)


def test_the_processes_of_one_training_are_spread_over_its_nodes(binding_cluster: Cluster):
    job = binding_cluster.sbatch("--cpus-per-task=1", "--exclusive", "slurm/ddp.sh")
    binding_cluster.wait_for_end(job)
    log = binding_cluster.log(job)
    assert {line for line in log.splitlines() if line.startswith("rank")} == {
        *("rank 0 of 4 on n1", "rank 1 of 4 on n1", "rank 2 of 4 on n2", "rank 3 of 4 on n2"),
    }


@pytest.mark.parametrize("flag", ["--export=NONE", "--export=WSI_IDC_MAX_RESTARTS=3"])
def test_a_job_without_the_variables_of_the_shell_finds_the_program(
    binding_cluster: Cluster, flag: str
):
    # A file from Windows.
    (binding_cluster.folder / "slurm/site.env").write_bytes(b"export SITE=lab\r\n")
    job = binding_cluster.sbatch(flag, "--cpus-per-task=2", "slurm/train.sh")
    binding_cluster.wait_for_end(job)
    assert "SITE lab, MARK venv, words job jobs/train.toml" in binding_cluster.log(job)


def test_a_search_is_shared_by_an_array(cluster: Cluster):
    (cluster.folder / "jobs/small.toml").write_text(SMALL_SEARCH)
    job = cluster.sbatch("slurm/search.sh", "jobs/small.toml")
    for number in (1, 2):
        cluster.wait_for_end(f"{job}_{number}")
    lines = (cluster.folder / "runs/small/trials.csv").read_text().splitlines()
    assert len(lines) == 4
    assert sorted(path.name for path in cluster.folder.glob("runs/small/trial-*")) == [
        f"trial-{number:04d}" for number in range(3)
    ]
    assert "finished" in cluster.run("wsi-idc", "status", "jobs/small.toml")


def test_four_processes_on_two_nodes_train_one_model(cluster: Cluster):
    job = cluster.sbatch("slurm/ddp.sh", "--epochs", "1")
    cluster.wait_for_end(job)
    record = run_of(cluster, "train-epochs-1")
    assert record["status"] == "finished"
    assert record["provenance"]["num_processes"] == 4
    assert epochs(cluster.folder / "runs/train-epochs-1") == 1


def pipeline(cluster: Cluster) -> dict[str, str]:
    """Start the pipeline and return the job of each step."""
    # From inside a job, as a login node would be asked to: SLURM tells that job a lot.
    job = cluster.sbatch("--ntasks=2", "--mem-per-cpu=300", "--wait", "slurm/pipeline.sh")
    lines = cluster.log(job).splitlines()
    return {line.split(":")[0]: line.split()[2].rstrip(",") for line in lines}


def test_the_pipeline_goes_through_its_steps(cluster: Cluster, tree: Path):
    # All other settings are those of the project; 30 epochs would take most of the time.
    train = cluster.folder / "jobs/train.toml"
    train.write_text(train.read_text().replace("epochs = 30 ", "epochs = 3 "))
    (cluster.folder / "data/idc.h5").unlink()
    for patient in tree.iterdir():
        (cluster.folder / "data" / patient.name).symlink_to(patient)
    steps = pipeline(cluster)
    assert list(steps) == ["prepare", "train", "eval", "map_all", "report"]
    for name in ("prepare", "train", "eval"):
        cluster.wait_for_end(steps[name])
    assert run_of(cluster, "train")["status"] == "finished"
    assert load_checkpoint(cluster.folder / "runs/train/best.pt").metrics["epoch"] <= 3
    assert "finished" in cluster.run("wsi-idc", "status", "jobs/train.toml")
    cluster.wait_for_end(steps["report"])
    assert (cluster.folder / "runs/train/eval-test/report.html").exists()
    assert len(list((cluster.folder / "maps").glob("[!c]*.h5"))) == 8
    assert (cluster.folder / "report/index.html").exists()


def test_a_failing_step_stops_those_after_it(cluster: Cluster):
    (cluster.folder / "data/idc.h5").unlink()
    steps = pipeline(cluster)
    cluster.wait_for_end(steps["prepare"], "FAILED")
    assert "Error: " in cluster.log(steps["prepare"])
    for name in ("train", "eval", "report"):
        cluster.wait_for_end(steps[name], "CANCELLED")
    assert not (cluster.folder / "runs").exists()


def test_a_submitted_job_runs_and_is_found_again(cluster: Cluster):
    (cluster.folder / "jobs/two.toml").write_text(
        'command = "train"\n[config]\nepochs = 1\n[axes]\nmodel = ["cnn", "cnn-bn"]\n'
    )
    (cluster.folder / "slurm/site.env").write_text(
        "export SBATCH_PARTITION=main SBATCH_TIMELIMIT=1:00:00 EXTENDED=$NOT_SET:x\n"
    )
    words = ("--cpus", "1", "--time", "00:05:00", "--partition", "high", "--sbatch=--hold")
    said = cluster.run("wsi-idc", "submit", "jobs/two.toml", *words)
    job = said.split("as job ")[1].split(",")[0]
    assert cluster.field(job, "Partition") == "high"
    assert cluster.field(job, "TimeLimit") == "00:05:00"
    assert "in the queue: " in cluster.run("wsi-idc", "status", "jobs/two.toml")
    cluster.run("scontrol", "release", job)
    for number in (1, 2):
        cluster.wait_for_end(f"{job}_{number}")
    assert sorted(path.name for path in (cluster.folder / "logs").iterdir()) == [
        f"two-{job}_1.out",
        f"two-{job}_2.out",
        "two.sbatch",
    ]
    status = json.loads(cluster.run("wsi-idc", "status", "jobs/two.toml", "--json"))
    assert [(task["out"], task["state"]) for task in status["tasks"]] == [
        ("runs/two-cnn", "finished"),
        ("runs/two-cnn-bn", "finished"),
    ]


def test_a_script_that_is_submitted_from_elsewhere_says_so(cluster: Cluster, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    job = subprocess.run(
        ["sbatch", "--parsable", "../slurm/train.sh"],
        cwd=tmp_path / "elsewhere",
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    cluster.wait_for_end(job, "FAILED")
    assert "slurm/slurm_job.sh" in cluster.log(job)
