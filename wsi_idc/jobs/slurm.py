"""Generate the sbatch script of a job, submit it, and read SLURM's queue.

A script is plain text that a user can read, keep and change.
"""

import getpass
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from wsi_idc.core.errors import JobError
from wsi_idc.jobs.job import TRAIN, Job

LOGS = Path("logs")
SITE = Path("slurm/site.env")
_SBATCH_SECONDS = 120
_SQUEUE_SECONDS = 20
_NEEDS_GPU = ("train", "search", "eval", "compare", "map")
# The address at which the processes of one training meet.
_RENDEZVOUS = [
    'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)',
    "export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
]


@dataclass(frozen=True)
class Resources:
    """Resources of each task of a job; empty values are left to the site.

    Attributes:
        gpus: GPUs per node; None: 1 if the command runs a network, else 0.
        nodes: Nodes of one training.
        cpus: Cores per process.
        memory: Memory per node, as sbatch takes it.
        time: Time limit, at which an unfinished job is requeued.
        partition: Partition of the cluster.
        account: Account that is charged.
        more: Further flags of sbatch, such as "--qos=long".
    """

    gpus: int | None = None
    nodes: int = 1
    cpus: int = 4
    memory: str = "6G"
    time: str = "04:00:00"
    partition: str = ""
    account: str = ""
    more: tuple[str, ...] = ()


def sbatch_text(job: Job, resources: Resources, flags: Sequence[str] = ()) -> str:
    """Generate the script that runs a job, with an array task for each of its tasks.

    Args:
        job: The job.
        resources: Resources of each task.
        flags: Arguments for the command of each task.

    Raises:
        JobError: Several processes are requested for a command other than train, or a value has a
            line break.
    """
    gpus = resources.gpus
    if gpus is None:
        gpus = 1 if job.command in _NEEDS_GPU else 0
    if max(resources.nodes, gpus) > 1 and job.command != TRAIN:
        raise JobError(
            f"{job.path}: several --nodes or --gpus are for a training; the tasks of a map or "
            "search have one GPU each"
        )
    num_processes = max(1, gpus) if job.command == TRAIN else 1
    is_distributed, is_array = num_processes * resources.nodes > 1, len(job.tasks) > 1
    directives = [
        f"--job-name={job.name}",
        *([f"--array=1-{len(job.tasks)}"] if is_array else []),
        *([f"--account={resources.account}"] if resources.account else []),
        *([f"--partition={resources.partition}"] if resources.partition else []),
        *([f"--nodes={resources.nodes}"] if is_distributed else []),
        *([f"--ntasks-per-node={num_processes}"] if is_distributed else []),
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        f"--cpus-per-task={resources.cpus}",
        f"--mem={resources.memory}",
        f"--time={resources.time}",
        "--signal=USR1@120",
        "--requeue",
        "--open-mode=append",
        f"--output={LOGS / ('%x-%A_%a.out' if is_array else '%x-%j.out')}",
        *resources.more,
    ]
    if any(not directive.isprintable() for directive in directives):
        raise JobError(f"{job.path}: a flag for sbatch is one line of printable text")
    lines = ["#!/usr/bin/env bash", f"# Made by wsi-idc submit {shlex.quote(str(job.path))}"]
    lines += [f"#SBATCH {_quoted(directive)}" for directive in directives]
    shared = (files("wsi_idc.jobs") / "slurm_job.sh").read_text(encoding="utf-8")
    lines += ["set -euo pipefail", "", shared.partition("\n\n")[2]]
    lines += [
        *(_RENDEZVOUS if is_distributed else []),
        shlex.join(["run_job", str(job.path), *flags]),
    ]
    return "\n".join(lines) + "\n"


def _quoted(directive: str) -> str:
    """Quote a directive if needed: sbatch splits a line at spaces and ends it at #."""
    return shlex.quote(directive) if set(directive) & set(" #'\"\\") else directive


def submit(script: Path, flags: Sequence[str] = ()) -> str:
    """Submit a script with the site's settings and return the job's id.

    Args:
        script: Text of ``sbatch_text``.
        flags: Flags of sbatch; they win over the site's settings, which win over the script's.

    Raises:
        JobError: sbatch refuses the script or does not answer.
    """
    # The site's file sets SBATCH_ACCOUNT and the like.
    bash = 'if [[ -f "$1" ]]; then source "$1"; fi; exec sbatch --parsable "${@:2}"'
    try:
        answer = subprocess.run(
            ["bash", "-c", bash, "bash", str(SITE), *flags, str(script)],
            env={
                name: value
                for name, value in os.environ.items()
                # The variables of an enclosing job must not apply to the new job.
                if not name.startswith("SLURM_") or name == "SLURM_CONF"
            },
            capture_output=True,
            text=True,
            timeout=_SBATCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"sbatch did not answer in {_SBATCH_SECONDS} s; try again") from None
    if answer.returncode:
        reason = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise JobError(f"sbatch refuses {script}: {reason}")
    return answer.stdout.strip().splitlines()[-1].partition(";")[0]


def queue_of(job: Job) -> list[str]:
    """Return a line for each entry of the job in SLURM's queue, none without SLURM.

    Running entries have the job file as their comment; pending ones are recognized by their name.
    """
    command = ["squeue", "-h", f"--user={getpass.getuser()}", "--format=%j|%k|%i %T, %M of %l, %R"]
    if not shutil.which(command[0]):
        return []
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_SQUEUE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else []:
        name, comment, entry = [*line.split("|", 2), "", ""][:3]
        has_name = name in (job.name, f"wsi-idc-{job.name}")
        if comment.startswith("wsi-idc job "):
            has_name = comment == f"wsi-idc job {job.path}"
        if has_name:
            lines.append(entry)
    return lines
