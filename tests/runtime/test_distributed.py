"""Real processes that train together over gloo."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsi_idc.core.errors import RunError
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.distributed import (
    SINGLE_PROCESS,
    World,
    _check_own_gpu,
    _own_gpu,
    init_distributed,
)

# Dropout and batch norm see a process's own part of a batch; without them the sums must agree.
PROGRAM = """
import wsi_idc.models.cnn
wsi_idc.models.cnn.DROPOUT = 0.0
from wsi_idc.cli import main
main()
"""


def start(cohort: Pack, out: Path, *more: str, num: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["train", "--model", "cnn", "--split", "ratio:50/25/25", "--batch-size", "16"]
    words += ["--optimizer", "sgd", "--device", "cpu", "--data", str(cohort.path)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, "--out", str(out), *more],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num)
    ]


def history(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def wait_for_an_epoch(out: Path, processes: list[subprocess.Popen]) -> None:
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.1)


def test_the_parts_of_all_processes_are_the_whole():
    for num, size in [(10, 3), (2, 3), (64, 2), (0, 2)]:
        parts = [list(range(num))[World(rank, size).shard(num)] for rank in range(size)]
        assert [thing for part in parts for thing in part] == list(range(num))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_torchrun_or_srun_there_is_one_process(monkeypatch: pytest.MonkeyPatch):
    # What sbatch sets without srun starts nothing.
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    with init_distributed("cpu") as world:
        assert world is SINGLE_PROCESS


@pytest.mark.slow
def test_two_processes_train_as_one_does(cohort: Pack, tmp_path: Path):
    found = {}
    for num in (1, 2):
        out = tmp_path / str(num)
        processes = start(cohort, out, "--epochs", "2", num=num)
        said = [process.communicate(timeout=240) for process in processes]
        assert [process.returncode for process in processes] == [0] * num, said
        assert [bool(stdout) for stdout, _ in said] == [True, False][:num]
        found[num] = history(out)
    for one, two in zip(found[1], found[2], strict=True):
        for name in ("train_loss", "val_loss", "val_auc", "val_average_precision"):
            assert two[name] == pytest.approx(one[name], abs=1e-3), name


@pytest.mark.slow
def test_a_lost_process_ends_the_others_with_an_error(cohort: Pack, tmp_path: Path):
    out = tmp_path / "run"
    processes = start(cohort, out, "--epochs", "500", "--patience", "500")
    try:
        wait_for_an_epoch(out, processes)
        processes[1].kill()
        killed = time.monotonic()
        _, said = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert time.monotonic() - killed < 60
    assert processes[0].returncode == 1
    assert said.strip().splitlines()[-1].startswith("Error: process 0 of 2 lost its connection")
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_with_everything_saved(cohort: Pack, tmp_path: Path):
    out = tmp_path / "run"
    words = ("--epochs", "500", "--patience", "500")
    processes = start(cohort, out, *words)
    try:
        wait_for_an_epoch(out, processes)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [75, 75], said
    assert (out / "last.pt").exists()


def test_srun_without_a_place_to_meet_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(RunError, match="set MASTER_ADDR"), init_distributed("cpu"):
        pass


def seeing(monkeypatch: pytest.MonkeyPatch, *uuids: str) -> None:
    """Let torch see GPUs that are not there."""
    import torch

    found = [SimpleNamespace(uuid=uuid) for uuid in uuids]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: found[number])


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch):
    seeing(monkeypatch, "a", "b")
    assert [_own_gpu("auto", size=2, local_rank=rank) for rank in (0, 1)] == [0, 1]
    for device, rank in [("auto", 2), ("cuda:0", 0)]:
        with pytest.raises(RunError, match="3 processes want a GPU each, of 2 on this machine"):
            _own_gpu(device, size=3, local_rank=rank)


def test_a_process_that_sees_its_own_gpu_alone_takes_it(monkeypatch: pytest.MonkeyPatch):
    seeing(monkeypatch, "b")
    assert [_own_gpu("auto", size=4, local_rank=rank) for rank in (0, 1, 3)] == [0, 0, 0]
    there = platform.node()
    monkeypatch.setattr(World, "gather", lambda self, mine: [(there, "a"), mine])
    _check_own_gpu(World(1, 2))


def test_processes_that_have_one_gpu_together_are_told(monkeypatch: pytest.MonkeyPatch):
    seeing(monkeypatch, "a")
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine, mine])
    with pytest.raises(RunError, match="2 processes want a GPU each, of 1 on this machine"):
        _check_own_gpu(World(1, 2))
    # The same number on another machine is another GPU.
    monkeypatch.setattr(World, "gather", lambda self, mine: [("elsewhere", "a"), mine])
    _check_own_gpu(World(1, 2))
