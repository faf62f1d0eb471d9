"""Checks of the machine: cores, memory, GPUs and the SLURM job."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from wsi_idc.doctor.doctor import NOTE, PROBLEM, CheckResult, make_result
from wsi_idc.runtime.resources import available_cores, memory_limit, num_threads, slurm_gpus

_GIB = 2**30
_SECONDS = 10.0
# Environment variables in the report. They describe the resources of a SLURM job. Their values name
# no person, account or machine.
_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"),
    *("SLURM_JOB_PARTITION", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"),
    *("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"),
    *("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "CUDA_VISIBLE_DEVICES"),
)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[CheckResult]:
    """Report the model of the processor."""
    if name := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE):
        yield CheckResult("processor", name[1])


def cores() -> Iterator[CheckResult]:
    """Report the cores that the program can use, and the threads that torch uses."""
    num_cores, used, threads = os.cpu_count() or 1, available_cores(), num_threads()
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else num_cores
    by_slurm = os.environ.get("SLURM_CPUS_PER_TASK") or "not set"
    value = f"{num_cores} in the machine, {seen} in the CPU affinity, {by_slurm} by SLURM"
    advice = (
        f"{used} threads would share {seen} cores; start the program with srun "
        f"--cpus-per-task={used}, or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before srun"
    )
    yield make_result("cores", value, used > seen, advice, PROBLEM)
    is_limited = threads < used
    limit = f" (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')})" if is_limited else ""
    advice = "unset OMP_NUM_THREADS to use all available cores"
    yield make_result("threads of torch", f"{threads}{limit}", is_limited, advice)


def memory() -> Iterator[CheckResult]:
    """Report the memory of the machine and the limit of this process."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    total, free = (int(info[name]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    limit = memory_limit()
    limit_text = f"limit of this job {limit / _GIB:.1f} GiB" if limit else "no limit set"
    yield CheckResult("memory", f"{total:.1f} GiB, {free:.1f} GiB free, {limit_text}")


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[CheckResult]:
    """Report the shared memory, which processes on the same machine use to exchange data."""
    usage = shutil.disk_usage(path)
    value = f"{usage.total / _GIB:.2f} GiB, {usage.free / _GIB:.2f} GiB free"
    advice = "several processes may end with a bus error; start a container with --shm-size=1g"
    yield make_result(str(path), value, usage.free < _GIB / 4, advice)


def torch_build() -> Iterator[CheckResult]:
    """Report the version of torch, and the versions of CUDA, ROCm and cuDNN in its build."""
    cudnn = torch.backends.cudnn.version()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    built += f", ROCm {torch.version.hip}" if torch.version.hip else ""
    built += f", cuDNN {cudnn}" if cudnn else ""
    yield CheckResult("torch", f"{torch.__version__}, built for {built}")


def gpus() -> Iterator[CheckResult]:
    """Report the GPUs that torch can use, or the reason why torch can use no GPU."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(num_gpus):
        gpu = torch.cuda.get_device_properties(number)
        value = (
            f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB, compute capability "
            f"{gpu.major}.{gpu.minor}, {'bf16' if gpu.major >= 8 else 'no bf16'}"
        )
        yield CheckResult(f"GPU {number}", value)
    if num_gpus:
        return
    by_driver, by_slurm = len(_driver_versions()), slurm_gpus()
    if torch.backends.mps.is_available():
        yield CheckResult("GPUs", "an Apple GPU (MPS)")
    elif not by_slurm and not by_driver:
        yield CheckResult("GPUs", "none: everything is computed on the CPU", NOTE)
    else:
        advice = (
            "install a torch that is built for CUDA (https://pytorch.org/get-started)"
            if torch.version.cuda is None
            else f"use a driver that supports CUDA {torch.version.cuda}, request GPUs for the job "
            "(--gres=gpu:1), and do not hide these GPUs (CUDA_VISIBLE_DEVICES)"
        )
        source = f"SLURM assigns GPUs ({by_slurm})" if by_slurm else f"nvidia-smi finds {by_driver}"
        yield CheckResult("GPUs", f"torch finds no GPU, but {source}", PROBLEM, advice)


def driver() -> Iterator[CheckResult]:
    """Report the version of the NVIDIA driver."""
    versions = ", ".join(sorted(set(_driver_versions())))
    is_here = shutil.which("nvidia-smi")
    reason = "nvidia-smi reports no driver" if is_here else "no NVIDIA driver (no nvidia-smi)"
    yield CheckResult("driver", f"NVIDIA {versions}" if versions else reason)


def _driver_versions() -> list[str]:
    """Return a list with the version of the NVIDIA driver for each GPU."""
    answer = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.stdout.splitlines() if answer and answer.returncode == 0 else []


def _run(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """Run a program and return its result. If the program is not installed, return None."""
    if not shutil.which(command[0]):
        return None
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)


def slurm() -> Iterator[CheckResult]:
    """Report the versions of SLURM's programs, and the resources of the current SLURM job."""
    for name in ("srun", "sbatch"):
        answer = _run(name, "--version")
        if answer is None:
            yield CheckResult(name, "not installed")
        elif answer.returncode == 0:
            yield CheckResult(name, answer.stdout.strip())
        else:
            reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
            value, advice = f"does not work ({reason})", "the machine may not belong to a cluster"
            yield CheckResult(name, value, NOTE, advice)
    value = ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ)
    if "SLURM_JOB_ID" not in os.environ:
        value = f"none ({value})" if value else "none"
    yield CheckResult("SLURM job", value)
