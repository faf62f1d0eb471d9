import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wsi_idc.doctor import machine
from wsi_idc.doctor.doctor import NOTE, OK, PROBLEM, CheckResult

GIB = 2**30


def test_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert list(machine.cores()) == [
        CheckResult("cores", "8 in the machine, 2 in the CPU affinity, not set by SLURM"),
        CheckResult("threads of torch", "2"),
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    cores, threads = machine.cores()
    assert cores.value == "8 in the machine, 2 in the CPU affinity, 4 by SLURM"
    advice = "4 threads would share 2 cores; start the program with srun --cpus-per-task=4"
    assert cores.advice.startswith(advice) and cores.state == PROBLEM
    advice = "unset OMP_NUM_THREADS to use all available cores"
    assert threads == CheckResult("threads of torch", "1 (OMP_NUM_THREADS=1)", NOTE, advice)


def test_processor(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t: x\n")
    (row,) = machine.processor(tmp_path / "cpuinfo")
    assert row == CheckResult("processor", "AMD EPYC 7763")


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/job/step\n", {"job/memory.max": "1000", "job/step/memory.max": "max"}, 1000),
        ("0::/job/step\n", {"job/memory.max": "1000", "job/step/memory.max": "500"}, 500),
        ("0::/job\n", {"job/memory.max": "max"}, None),
        ("0::/of/another/container\n", {"memory.max": "2000"}, 2000),
        ("0::/../..\n", {}, None),
        ("4:cpu:/a\n9:memory:/a\n", {"memory/a/memory.limit_in_bytes": "300"}, 300),
        ("9:memory:/a\n", {"memory/a/memory.limit_in_bytes": str(2**63 - 4096)}, None),
    ],
)
def test_memory_limit_is_the_smallest(
    tmp_path: Path, own: str, files: dict[str, str], limit: int | None
):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert machine.memory_limit(tmp_path / "own", tmp_path / "root") == limit


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="no /proc here")
def test_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 3 * GIB)
    (row,) = machine.memory()
    assert row.value.endswith(" GiB free, limit of this job 3.0 GiB")


def test_shared_memory(monkeypatch: pytest.MonkeyPatch):
    for size, text, state in ((GIB // 16, "0.06", NOTE), (4 * GIB, "4.00", OK)):
        usage = SimpleNamespace(total=size, free=size)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        (row,) = machine.shared_memory()
        expected = ("/dev/shm", f"{text} GiB, {text} GiB free", state)
        assert (row.name, row.value, row.state) == expected


def fake_programs(monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, tuple[int, str, str]]:
    """Replace all programs by these; return their answers, to be filled."""
    answers: dict[str, tuple[int, str, str]] = {}

    def run(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        assert options["timeout"] == 10
        query = command[0] if command[0] != "nvidia-smi" else command[1].partition("=")[2]
        return subprocess.CompletedProcess(command, *answers[query])

    monkeypatch.setattr(shutil, "which", lambda name: name if name in names else None)
    monkeypatch.setattr(subprocess, "run", run)
    return answers


def set_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """Replace the GPUs of torch by GPUs with these compute capabilities."""
    gpus = [
        SimpleNamespace(name="NVIDIA X", total_memory=80 * GIB, major=major, minor=minor)
        for major, minor in capabilities
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus(monkeypatch: pytest.MonkeyPatch):
    answers = fake_programs(monkeypatch, "nvidia-smi")
    answers["driver_version"] = (0, "550.54\n550.54\n", "")
    set_gpus(monkeypatch, (9, 0), (7, 5))
    assert list(machine.driver()) == [CheckResult("driver", "NVIDIA 550.54")]
    assert list(machine.gpus()) == [
        CheckResult("GPU 0", "NVIDIA X, 80 GiB, compute capability 9.0, bf16"),
        CheckResult("GPU 1", "NVIDIA X, 80 GiB, compute capability 7.5, no bf16"),
    ]
    set_gpus(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (row,) = machine.gpus()
    assert (row.value, row.state) == ("torch finds no GPU, but nvidia-smi finds 2", PROBLEM)
    assert row.advice.startswith("use a driver that supports CUDA 13.0")
    answers["driver_version"] = (9, "", "NVIDIA-SMI has failed\n")
    assert list(machine.driver()) == [CheckResult("driver", "nvidia-smi reports no driver")]


def test_no_gpu_is_a_problem_if_slurm_gave_one(monkeypatch: pytest.MonkeyPatch):
    fake_programs(monkeypatch)
    set_gpus(monkeypatch)
    assert list(machine.driver()) == [CheckResult("driver", "no NVIDIA driver (no nvidia-smi)")]
    value = "none: everything is computed on the CPU"
    assert list(machine.gpus()) == [CheckResult("GPUs", value, NOTE)]
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "3")
    monkeypatch.setattr(torch.version, "cuda", None)
    (row,) = machine.gpus()
    assert row.value == "torch finds no GPU, but SLURM assigns GPUs (SLURM_JOB_GPUS=3)"
    assert row.advice.startswith("install a torch that is built for CUDA")


def test_torch_build(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    for cuda, hip, cudnn, built_for in [
        (None, None, None, "CPUs only"),
        (None, "6.4", None, "CPUs only, ROCm 6.4"),
        ("13.0", None, 92400, "CUDA 13.0, cuDNN 92400"),
    ]:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda cudnn=cudnn: cudnn)
        assert [row.value for row in machine.torch_build()] == [f"2.9.0, built for {built_for}"]


def test_slurm(monkeypatch: pytest.MonkeyPatch):
    for name in machine._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    fake_programs(monkeypatch)
    rows = [(row.name, row.value) for row in machine.slurm()]
    assert rows == [("srun", "not installed"), ("sbatch", "not installed"), ("SLURM job", "none")]
    answers = fake_programs(monkeypatch, "srun", "sbatch")
    answers["srun"] = (0, "slurm-wlm 22.05.8\n", "")
    answers["sbatch"] = (1, "", "sbatch: error: a\nsbatch: fatal: no configuration\n")
    for variable in ("JOB_ID=7", "CPUS_PER_TASK=4", "JOB_USER=ada", "JOB_ACCOUNT=secret"):
        name, _, value = variable.partition("=")
        monkeypatch.setenv(f"SLURM_{name}", value)
    srun, sbatch, job = machine.slurm()
    assert srun == CheckResult("srun", "slurm-wlm 22.05.8")
    assert (sbatch.value, sbatch.state) == ("does not work (sbatch: fatal: no configuration)", NOTE)
    assert job == CheckResult("SLURM job", "SLURM_JOB_ID=7, SLURM_CPUS_PER_TASK=4")
