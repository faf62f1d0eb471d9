"""The machine: cores, memory, GPUs, and what SLURM gave of them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from wsi_idc.doctor.check_result import NOTE, PROBLEM, CheckResult
from wsi_idc.runtime.resources import available_cores, num_threads, slurm_gpus

_GIB = 2**30
# A limit that is none is written as a very large number.
_NO_LIMIT = 2**60
_SECONDS = 10.0
# What says what a job has; no names of people, accounts or machines.
_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"),
    *("SLURM_JOB_PARTITION", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"),
    *("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"),
    *("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "CUDA_VISIBLE_DEVICES"),
)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[CheckResult]:
    """Find the kind of processor."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    if named:
        yield CheckResult("processor", named[1])


def cores() -> Iterator[CheckResult]:
    """Find the cores that there are, that may be used, and that are."""
    there, used, threads = os.cpu_count() or 1, available_cores(), num_threads()
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    value = f"{there} in the machine, {seen} by affinity, {given or 'none said'} by SLURM"
    if used > seen:
        yield CheckResult(
            "cores",
            value,
            PROBLEM,
            f"{used} threads would share {seen} cores; start it with srun --cpus-per-task={used}, "
            "or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK ahead of srun",
        )
    else:
        yield CheckResult("cores", value)
    if threads < used:
        omp = os.environ.get("OMP_NUM_THREADS")
        advice = "unset OMP_NUM_THREADS to use all cores given"
        yield CheckResult("threads of torch", f"{threads} (OMP_NUM_THREADS={omp})", NOTE, advice)
    else:
        yield CheckResult("threads of torch", str(threads))


def memory() -> Iterator[CheckResult]:
    """Find the memory of the machine, and how much of it this process may have."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    total, free = (int(info[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = memory_limit()
    of_limit = f"limit of this job {limit / _GIB:.1f} GiB" if limit else "no limit set"
    yield CheckResult("memory", f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB free, {of_limit}")


def memory_limit(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes of memory that the control groups leave this process, None: no limit."""
    limits = []
    for line in own.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base, file = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        # Each group above may be the tighter one; in a container the path may lie outside.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(base) and (group / file).is_file():
                said = (group / file).read_text().strip()
                if said.isdecimal() and int(said) < _NO_LIMIT:
                    limits.append(int(said))
    return min(limits, default=None)


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[CheckResult]:
    """Find the shared memory through which processes on one machine talk."""
    usage = shutil.disk_usage(path)
    value = f"{usage.total / _GIB:.2f} GiB, {usage.free / _GIB:.2f} GiB free"
    if usage.free < _GIB / 4:
        advice = "several processes or GPUs may fail with a bus error; in a container --shm-size=1g"
        yield CheckResult(str(path), value, NOTE, advice)
    else:
        yield CheckResult(str(path), value)


def torch_build() -> Iterator[CheckResult]:
    """Find what torch was built for."""
    cudnn = torch.backends.cudnn.version()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    built += f", ROCm {torch.version.hip}" if torch.version.hip else ""
    built += f", cuDNN {cudnn}" if cudnn else ""
    yield CheckResult("torch", f"{torch.__version__}, built for {built}")


def gpus() -> Iterator[CheckResult]:
    """Find the GPUs that torch sees, or why it sees none."""
    on_driver = _driver()
    num_seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(num_seen):
        one = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if one.major >= 8 else "no bf16"
        value = (
            f"{one.name}, {one.total_memory / _GIB:.0f} GiB, compute capability "
            f"{one.major}.{one.minor}, {bf16}"
        )
        yield CheckResult(f"GPU {number}", value)
    if num_seen:
        return
    if torch.backends.mps.is_available():
        yield CheckResult("GPUs", "one of Apple's (MPS)")
        return
    given = slurm_gpus()
    if not given and not on_driver:
        yield CheckResult("GPUs", "none: all is computed on the CPU", NOTE)
        return
    advice = (
        "install a torch that is built for CUDA (https://pytorch.org/get-started)"
        if torch.version.cuda is None
        else f"the driver must be new enough for CUDA {torch.version.cuda}, and the job must have "
        "asked for GPUs (--gres=gpu:1) and not hide them (CUDA_VISIBLE_DEVICES)"
    )
    there = f"SLURM gave some ({given})" if given else f"nvidia-smi shows {on_driver}"
    yield CheckResult("GPUs", f"torch sees none, yet {there}", PROBLEM, advice)


def driver() -> Iterator[CheckResult]:
    """Find the driver of the GPUs."""
    if not shutil.which("nvidia-smi"):
        yield CheckResult("driver", "none of NVIDIA's (no nvidia-smi)")
        return
    versions = sorted(set(_nvidia_smi("driver_version")))
    yield CheckResult("driver", f"NVIDIA {', '.join(versions)}" if versions else "says nothing")


def _driver() -> int:
    """Return how many GPUs the driver shows."""
    return len(_nvidia_smi("name")) if shutil.which("nvidia-smi") else 0


def _nvidia_smi(what: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    return found.stdout.split("\n")[:-1] if found.returncode == 0 else []


def slurm() -> Iterator[CheckResult]:
    """Find SLURM's programs, and what it says of this job."""
    for name in ("srun", "sbatch"):
        if not shutil.which(name):
            yield CheckResult(name, "not here")
            continue
        command = [name, "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        if answer.returncode == 0:
            yield CheckResult(name, answer.stdout.strip())
        else:
            why = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
            yield CheckResult(
                name, f"does not work ({why})", NOTE, "this machine is in no cluster?"
            )
    said = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    value = ", ".join(f"{name}={value}" for name, value in said.items())
    in_job = "SLURM_JOB_ID" in said
    yield CheckResult("SLURM job", value if in_job else f"none{f' ({value})' if value else ''}")
