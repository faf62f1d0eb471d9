"""The sbatch text against golden files, the scripts against bash and shellcheck, a fake sbatch."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsi_idc.cli.job import open_job
from wsi_idc.core.errors import JobError
from wsi_idc.jobs.slurm import sbatch_text, submit

from .test_job import write

REPOSITORY = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden")
SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))
SLURM_JOB = REPOSITORY / "slurm/slurm_job.sh"
MORE = ("--qos=long", "--constraint=a100|h100")
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "cv5": (["--device", "cuda"], {}),
    "train_resnet50": (
        [],
        {"gpus": 4, "nodes": 2, "cpus": 8, "memory": "64G", "time": "1-00:00:00"},
    ),
    "map_all": (
        ["--checkpoint", "runs/my run"],
        {"partition": "gpu", "account": "idc 24", "more": MORE},
    ),
    "prepare": ([], {"cpus": 2}),
    "search": ([], {"gpus": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_that_of_the_golden_file(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    flags, resources = CASES[name]
    text = sbatch_text(open_job(Path("jobs", f"{name}.toml"), flags), flags, **resources)
    golden = GOLDEN / f"{name}.sbatch"
    # To update the files: remove them, run this test, and check the diff of git.
    if not golden.exists():
        golden.write_text(text)
        pytest.fail(f"{golden} did not exist and is now written")
    assert text == golden.read_text()


OTHERS = [REPOSITORY / "tests/slurm/lab.sh", REPOSITORY / ".ci/run"]


@pytest.mark.parametrize(
    "path", [*SCRIPTS, *OTHERS, *sorted(GOLDEN.glob("*"))], ids=lambda path: path.name
)
def test_scripts_are_clean(path: Path):
    subprocess.run(["bash", "-n", path], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck here")
    command = ["shellcheck", "--external-sources", path]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).stdout == b""


@pytest.mark.parametrize("path", sorted({*SCRIPTS} - {SLURM_JOB}), ids=lambda path: path.name)
def test_scripts_request_requeueing_and_have_no_settings(path: Path):
    lines = path.read_text().splitlines()
    head = [line for line in lines if line.startswith("#SBATCH")]
    assert any("--output=%x-" in line for line in head)
    if path.name != "pipeline.sh":
        for wanted in ("--requeue", "--signal=USR1@120", "--open-mode=append"):
            assert f"#SBATCH {wanted}" in head
        assert lines[-1].startswith("run_job jobs/")
        assert lines[-1].endswith('.toml "$@"')
        assert (REPOSITORY / lines[-1].split()[1]).exists()
    settings = ("learning", "epochs", "batch-size", "optimizer", "patience")
    assert not [line for line in lines if line[:1] != "#" and any(w in line for w in settings)]


def test_arrays_are_as_long_as_their_jobs():
    arrays = []
    for path in SCRIPTS:
        text = path.read_text()
        of_script = re.findall(r"^#SBATCH --array=1-(\d+)", text, re.MULTILINE)
        pattern = r"^((?:#   sbatch|run_job).*? (\S+\.toml))(?:\s|$)"
        for line, job in re.findall(pattern, text, re.MULTILINE):
            arrays += [(size, job) for size in re.findall(r" --array=1-(\d+)", line) or of_script]
    assert len(arrays) >= 6
    for size, job in arrays:
        assert len(open_job(REPOSITORY / job, []).tasks) == int(size), job


def test_scripts_and_submitted_jobs_share_one_text():
    assert SLURM_JOB.read_text() == (REPOSITORY / "wsi_idc/jobs/slurm_job.sh").read_text()
    assert not SLURM_JOB.is_symlink()


def test_invalid_resources_are_refused(tmp_path: Path):
    search = open_job(REPOSITORY / "jobs/search.toml", [])
    for several in ({"nodes": 2}, {"gpus": 2}):
        with pytest.raises(JobError, match="only a training can have several --nodes or --gpus"):
            sbatch_text(search, **several)
    with pytest.raises(JobError, match="one line of printable text"):
        sbatch_text(search, account="a\n#SBATCH --mem=1T")
    with pytest.raises(JobError, match="one line of printable text"):
        sbatch_text(replace(search, path=Path("a\ntouch hacked\n.toml")))
    with pytest.raises(JobError, match="one line of printable text"):
        sbatch_text(search, ["--out", "a\x1b[2J"])


def fake(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch, name: str = "sbatch") -> None:
    write(folder, f"#!/usr/bin/env bash\n{script}\n", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(folder)


def test_submit_reads_the_sites_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NTASKS", "7")  # of the job that this runs in
    script = 'echo "$SBATCH_ACCOUNT ${SLURM_NTASKS:-none} $*" >given; echo "42;cluster"'
    fake(tmp_path, script, monkeypatch)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.env").write_bytes(b"export SBATCH_ACCOUNT=mine\r\n")  # of Windows
    assert submit(Path("a b.sbatch"), ["--time=5"]) == "42"
    assert (tmp_path / "given").read_text() == "mine none --parsable --time=5 a b.sbatch\n"


def test_a_command_in_site_env_replaces_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake(tmp_path, 'echo "$*" >given', monkeypatch, "srun")
    fake(tmp_path, 'echo "JobId=7 "', monkeypatch, "scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "slurm")
    site = write(tmp_path, 'export WSI_IDC_COMMAND="env BOX=1 wsi-idc"', "slurm/site.env")
    command = ["bash", "slurm/train.sh", "--model", "a b"]
    subprocess.run(command, check=True)
    given = (tmp_path / "given").read_text()
    assert given == "--export=ALL env BOX=1 wsi-idc job jobs/train.toml --model a b\n"
    site.write_text('export WSI_IDC_COMMAND="no-such-box exec wsi-idc"')
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("Error: no-such-box is not on ")


def test_an_error_of_sbatch_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake(tmp_path, 'echo "sbatch: error: Invalid account" >&2; echo more >&2; exit 1', monkeypatch)
    with pytest.raises(JobError, match=r"refuses x\.sbatch: sbatch: error: Invalid account more$"):
        submit(write(tmp_path, "", "x.sbatch").relative_to(tmp_path))


@pytest.mark.parametrize(
    ("content", "submitted", "message"),
    [
        (
            'command = "train"\n[axes]\nseed = [1, 2]',
            ["jobs/prepare.toml", "job.toml", "runs/job-2", "runs/job-1", "jobs/report.toml"],
            "",
        ),
        ("command =", [], "not a readable TOML file"),
        ('command = "search"\n[axes]\nseed = [1, 2]', [], "trains no model"),
    ],
)
def test_the_pipeline_evaluates_the_runs_of_a_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    submitted: list[str],
    message: str,
):
    fake(tmp_path, 'echo "$*" >>given; wc -l <given', monkeypatch)
    write(tmp_path, f'#!/bin/sh\nexec "{sys.executable}" -m wsi_idc "$@"\n', "wsi-idc").chmod(0o755)
    (tmp_path / "slurm").symlink_to(REPOSITORY / "slurm")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    job, given = write(tmp_path, content, "job.toml").name, tmp_path / "given"
    found = subprocess.run(["bash", "slurm/pipeline.sh", job], capture_output=True, text=True)
    assert (found.returncode == 0) == given.exists() == bool(submitted)
    lines = given.read_text().splitlines() if submitted else []
    assert [line.split()[-1] for line in lines] == submitted
    assert found.stderr.count("\n") == found.stderr.startswith("Error: ") == bool(message)
    assert message in found.stderr
