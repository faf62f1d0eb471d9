"""Generate the sbatch script of a job, submit the script, and read SLURM's queue.

The script is plain text: users can read, keep and change the script.
"""

import getpass
import os
import shlex
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from wsi_idc.core.errors import JobError
from wsi_idc.jobs.job import TRAIN, Job

LOGS = Path("logs")
SITE = Path("slurm/site.env")
_SBATCH_SECONDS = 120
_SQUEUE_SECONDS = 20
# slurm/site.env sets variables for sbatch, such as SBATCH_ACCOUNT. The lines of a file from Windows
# end with \r.
_SOURCE_SITE = """if [[ -f "$1" ]]; then source <(tr -d '\\r' <"$1"); fi"""
_SITE_VARIABLES = ("SBATCH_PARTITION", "SBATCH_TIMELIMIT")
_NEEDS_GPU = ("train", "search", "eval", "compare", "map")
# Shell lines that set the network address at which the processes of one training connect.
_RENDEZVOUS = [
    'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)',
    "export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
]


def sbatch_text(
    job: Job,
    flags: Sequence[str] = (),
    *,
    gpus: int | None = None,
    nodes: int = 1,
    cpus: int = 4,
    memory: str = "6G",
    time: str = "04:00:00",
    partition: str = "",
    account: str = "",
    more: Sequence[str] = (),
) -> str:
    """Generate the sbatch script of a job; several tasks of a job become a job array of SLURM.

    Args:
        job: Job for which the script is generated.
        flags: Arguments that are added to the command of each task.
        gpus: GPUs per node; None means 1 if the command runs a network, else 0.
        nodes: Number of nodes of one training.
        cpus: Cores per process.
        memory: Memory per node in the format of sbatch, such as "6G".
        time: Time limit; a job that reaches the limit is queued again.
        partition: Partition of the cluster; "" means the default of the file ``SITE`` or of SLURM.
        account: Account that pays for the job; "" means the default of ``SITE`` or of SLURM.
        more: Further flags of sbatch, such as "--qos=long".

    Raises:
        JobError: Several nodes or GPUs are given for a command other than train, or an argument
            contains unprintable characters.
    """
    gpus = int(job.command in _NEEDS_GPU) if gpus is None else gpus
    if max(nodes, gpus) > 1 and job.command != TRAIN:
        raise JobError(
            f"{job.path}: only a training can have several --nodes or --gpus; each task of a "
            "map or search has one GPU"
        )
    is_distributed, is_array = max(nodes, gpus) > 1, len(job.tasks) > 1
    directives = [
        f"--job-name={job.name}",
        *([f"--array=1-{len(job.tasks)}"] if is_array else []),
        *([f"--account={account}"] if account else []),
        *([f"--partition={partition}"] if partition else []),
        *([f"--nodes={nodes}", f"--ntasks-per-node={max(1, gpus)}"] if is_distributed else []),
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        f"--cpus-per-task={cpus}",
        f"--mem={memory}",
        f"--time={time}",
        "--signal=USR1@120",
        "--requeue",
        "--open-mode=append",
        f"--output={LOGS / ('%x-%A_%a.out' if is_array else '%x-%j.out')}",
        *more,
    ]
    if not all(text.isprintable() for text in (str(job.path), *flags, *directives)):
        raise JobError(
            f"{str(job.path)!r}: the path of a job file and each flag must be one line of "
            "printable text"
        )
    for index, directive in enumerate(directives):
        if set(directive) & set(" #'\"\\"):
            directives[index] = shlex.quote(directive)
    shared = (files("wsi_idc.jobs") / "slurm_job.sh").read_text(encoding="utf-8")
    lines = [
        "#!/usr/bin/env bash",
        f"# Made by wsi-idc submit {shlex.quote(str(job.path))}",
        *(f"#SBATCH {directive}" for directive in directives),
        *("set -euo pipefail", "", shared.partition("\n\n")[2]),
        *(_RENDEZVOUS if is_distributed else []),
        shlex.join(["run_job", str(job.path), *flags]),
    ]
    return "\n".join(lines) + "\n"


def submit(script: Path, flags: Sequence[str] = ()) -> str:
    """Submit a script to SLURM with the settings in ``SITE``; return the id of the SLURM job.

    Args:
        script: Path of a file with the text of ``sbatch_text``.
        flags: Flags of sbatch. Flags override the settings in ``SITE``, and ``SITE`` overrides the
            settings in the script.

    Raises:
        JobError: sbatch refuses the script or does not answer.
    """
    bash = f'{_SOURCE_SITE}; exec sbatch --parsable "${{@:2}}"'
    command = ["bash", "-c", bash, "bash", str(SITE), *flags, str(script)]
    # If this process runs in a SLURM job, the new job must not get the variables of this job.
    names = [name for name in os.environ if not name.startswith("SLURM_") or name == "SLURM_CONF"]
    environment = {name: os.environ[name] for name in names}
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SBATCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"sbatch did not answer in {_SBATCH_SECONDS} s; try again") from None
    if answer.returncode:
        reason = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise JobError(f"sbatch refuses {script}: {reason}")
    return answer.stdout.strip().splitlines()[-1].partition(";")[0]


def site_settings() -> dict[str, str]:
    """Return the variables of ``_SITE_VARIABLES`` that ``SITE`` or the environment sets."""
    known = {name: os.environ[name] for name in _SITE_VARIABLES if os.environ.get(name)}
    if not SITE.is_file():
        return known
    values = " ".join(f'"${{{name}-}}"' for name in _SITE_VARIABLES)
    bash = f"{_SOURCE_SITE} >/dev/null; printf '%s\\n' {values}"
    command = ["bash", "-c", bash, "bash", str(SITE)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return known
    lines = answer.stdout.splitlines()
    return {name: value for name, value in zip(_SITE_VARIABLES, lines, strict=False) if value}


def queue_of(job: Job) -> list[str]:
    """Return one line per entry of a job in SLURM's queue. Without SLURM, return an empty list.

    A running entry is found by its comment, which contains the path of the job file. A pending
    entry is found by its name.
    """
    command = ["squeue", "-h", f"--user={getpass.getuser()}", "--format=%j|%k|%i %T, %M of %l, %R"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # there is no squeue, or it does not answer
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
