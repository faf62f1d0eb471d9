"""The sbatch text of a job, and how to hand it to SLURM.

Plain sbatch and no library: what is submitted is a text that one can read, keep and change.
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
_SECONDS_FOR_SBATCH = 120
_NEEDS_GPU = ("train", "search", "eval", "compare", "map")


@dataclass(frozen=True)
class Resources:
    """What a task of a job asks for, the empty being left to the site.

    Attributes:
        gpus: A node; None: 1 where the command computes with a network, else 0.
        nodes: For one training over several.
        cpus: A process.
        memory: A node, as sbatch takes it.
        time: At a time: the job goes on after each.
        partition: Where to run.
        account: Who pays.
        more: Further flags of sbatch, each a whole one.
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
    """Return the script that does a job, a task of it in each task of an array.

    Args:
        job: What to do.
        resources: What a task asks for.
        flags: Arguments for the command of each task.

    Raises:
        JobError: Several processes for something else than a training, or a line break in a value.
    """
    gpus = resources.gpus
    if gpus is None:
        gpus = 1 if job.command in _NEEDS_GPU else 0
    num_processes = max(1, gpus) if job.command == TRAIN else 1
    if max(resources.nodes, gpus) > 1 and job.command != TRAIN:
        raise JobError(
            f"{job.path}: several --nodes or --gpus are for a training; the tasks of a map or "
            "search have one GPU each"
        )
    is_array = len(job.tasks) > 1
    directives = _directives(
        job, resources, gpus=gpus, num_processes=num_processes, is_array=is_array
    )
    if any(not line.isprintable() for line in directives):
        raise JobError(f"{job.path}: a flag for sbatch is one line of printable text")
    lines = ["#!/usr/bin/env bash", f"# Made by wsi-idc submit {shlex.quote(str(job.path))}"]
    lines += [f"#SBATCH {_quoted(directive)}" for directive in directives]
    turn = (files("wsi_idc.jobs") / "slurm_job.sh").read_text(encoding="utf-8")
    lines += ["set -euo pipefail", "", turn.partition("\n\n")[2]]
    if num_processes * resources.nodes > 1:
        lines += _MEETING
    lines.append(shlex.join(["turn_job", str(job.path), *flags]))
    return "\n".join(lines) + "\n"


# Where the processes of one training find each other.
_MEETING = [
    'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)',
    "export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
]


def _directives(
    job: Job, resources: Resources, *, gpus: int, num_processes: int, is_array: bool
) -> list[str]:
    several = num_processes * resources.nodes > 1
    log = "%x-%A_%a.out" if is_array else "%x-%j.out"
    return [
        f"--job-name={job.name}",
        *([f"--array=1-{len(job.tasks)}"] if is_array else []),
        *([f"--account={resources.account}"] if resources.account else []),
        *([f"--partition={resources.partition}"] if resources.partition else []),
        *([f"--nodes={resources.nodes}"] if several else []),
        *([f"--ntasks-per-node={num_processes}"] if several else []),
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        f"--cpus-per-task={resources.cpus}",
        f"--mem={resources.memory}",
        f"--time={resources.time}",
        "--signal=USR1@120",
        "--requeue",
        "--open-mode=append",
        f"--output={LOGS / log}",
        *resources.more,
    ]


def _quoted(directive: str) -> str:
    """Return a directive as one word for sbatch, which splits a line at spaces and ends it at #."""
    return shlex.quote(directive) if set(directive) & set(" #'\"\\") else directive


def submit(script: Path, flags: Sequence[str] = ()) -> str:
    """Hand a script to sbatch, with the site's settings, and return the job's id.

    Args:
        script: As ``sbatch_text`` makes it.
        flags: Of sbatch, that win over the site's settings, which win over what is in the script.

    Raises:
        JobError: There is no sbatch here, or it refuses.
    """
    # SBATCH_ACCOUNT and the like are set there.
    words = 'if [[ -f "$1" ]]; then source "$1"; fi; exec sbatch --parsable "${@:2}"'
    try:
        found = subprocess.run(
            ["bash", "-c", words, "bash", str(SITE), *flags, str(script)],
            env={
                name: value
                for name, value in os.environ.items()
                # Inside a job, what SLURM says of it is not for the one that it submits.
                if not name.startswith("SLURM_") or name == "SLURM_CONF"
            },
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_SBATCH,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"sbatch did not answer in {_SECONDS_FOR_SBATCH} s; try again") from None
    if found.returncode:
        reason = " ".join(found.stderr.split()) or f"exit code {found.returncode}"
        raise JobError(f"sbatch refuses {script}: {reason}")
    return found.stdout.strip().splitlines()[-1].partition(";")[0]


_SECONDS_FOR_SQUEUE = 20


def queue_of(job: Job) -> list[str]:
    """Return a line for each entry of SLURM's queue that is of this job, none without SLURM.

    What runs says which job file it is for; what waits is known by its name.
    """
    if not shutil.which("squeue"):
        return []
    wanted = ["squeue", "-h", f"--user={getpass.getuser()}", "--format=%j|%k|%i %T, %M of %l, %R"]
    try:
        found = subprocess.run(
            wanted, capture_output=True, text=True, timeout=_SECONDS_FOR_SQUEUE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = []
    for line in found.stdout.splitlines() if found.returncode == 0 else []:
        name, comment, rest = [*line.split("|", 2), "", ""][:3]
        is_named = name in (job.name, f"wsi-idc-{job.name}")
        of_another = comment.startswith("wsi-idc job ") and comment != f"wsi-idc job {job.path}"
        if comment == f"wsi-idc job {job.path}" or (is_named and not of_another):
            lines.append(rest)
    return lines
