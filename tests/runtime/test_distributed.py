"""Real processes that train together over gloo."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wsi_idc.core.errors import RunError
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.distributed import (
    SINGLE_PROCESS,
    World,
    _check_own_gpu,
    _own_gpu,
    init_distributed,
)

# Imports torch once, then forks the processes of each training, as torchrun would start them.
# Dropout and batch norm depend on a process's own part of a batch; without them, sums must agree.
LAUNCHER = """
import json, os, sys
import wsi_idc.models.cnn
import wsi_idc.training.logger
import wsi_idc.training.train
from wsi_idc.cli.main import main
wsi_idc.models.cnn.DROPOUT = 0.0
for name in ("draw_curves", "save_png", "augmented_samples"):  # longer than the training
    setattr(wsi_idc.training.logger, name, lambda *_, **__: None)

def start(rank, num, port, log, words):
    if pid := os.fork():
        return pid
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{rank}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), fd)
    sys.argv = ["wsi-idc", *words]
    main()

for line in sys.stdin:
    num, *arguments = json.loads(line)
    pids = [start(rank, num, *arguments) for rank in range(num)]
    print(json.dumps(pids), flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


class Launcher:
    def __init__(self, process: subprocess.Popen, pack: Pack, folder: Path) -> None:
        self._process, self._pack, self._log = process, pack, folder / "log"

    def start(self, out: Path, *words: str, num: int) -> list[int]:
        """Start a training in ``num`` processes and return their ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = ["train", "--model", "cnn", "--split", "ratio:50/25/25", "--batch-size", "16"]
        command += ["--optimizer", "sgd", "--device", "cpu", "--data", str(self._pack.path)]
        command += ["--out", str(out), *words]
        self._process.stdin.write(json.dumps([num, port, str(self._log), command]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def wait(self) -> list[int]:
        """Wait for all processes of the training and return their exit codes."""
        return json.loads(self._process.stdout.readline())

    def read(self, rank: int, stream: str) -> str:
        """Return the output of a process: "out" or "err"."""
        return Path(f"{self._log}.{rank}.{stream}").read_text()


@pytest.fixture
def launcher(small: Pack, tmp_path: Path) -> Iterator[Launcher]:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Launcher(process, small, tmp_path)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def history(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def wait_for_epoch(out: Path, num: int) -> None:
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(history(out)) < num:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_train_as_one_stop_together_and_notice_a_loss(
    launcher: Launcher, tmp_path: Path
):
    for num in (1, 2):
        launcher.start(tmp_path / str(num), "--epochs", "2", num=num)
        assert launcher.wait() == [0] * num, launcher.read(0, "err")
        assert [bool(launcher.read(rank, "out")) for rank in range(num)] == [True, False][:num]
    for single, double in zip(history(tmp_path / "1"), history(tmp_path / "2"), strict=True):
        for name in ("train_loss", "val_loss", "val_auc", "val_average_precision"):
            assert double[name] == pytest.approx(single[name], abs=1e-3), name

    # A signal to one process stops both, with everything saved.
    out, words = tmp_path / "run", ("--epochs", "500", "--patience", "500")
    pids = launcher.start(out, *words, num=2)
    wait_for_epoch(out, 1)
    os.kill(pids[1], signal.SIGTERM)
    assert launcher.wait() == [75, 75], launcher.read(0, "err")
    assert (out / "last.pt").exists()

    # A killed process ends the other one with an error.
    num_epochs = len(history(out))
    pids = launcher.start(out, *words, num=2)
    wait_for_epoch(out, num_epochs + 1)
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    assert launcher.wait() == [1, -signal.SIGKILL]
    assert time.monotonic() - killed < 60
    error = launcher.read(0, "err")
    assert error.strip().splitlines()[-1].startswith("Error: process 0 of 2 lost its connection")
    assert "Traceback" not in error


def test_shards_of_all_processes_cover_all_items():
    for num, size in [(10, 3), (2, 3), (64, 2), (0, 2)]:
        shards = [list(range(num))[World(rank, size).shard(num)] for rank in range(size)]
        assert [item for shard in shards for item in shard] == list(range(num))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_without_torchrun_or_srun_there_is_one_process(monkeypatch: pytest.MonkeyPatch):
    # sbatch sets these, but without srun it starts one process.
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with init_distributed("cpu") as world:
        assert world is SINGLE_PROCESS
    # srun starts several processes, which must find each other.
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(RunError, match="set MASTER_ADDR"), init_distributed("cpu"):
        pass


def fake_gpus(monkeypatch: pytest.MonkeyPatch, *uuids: str) -> None:
    gpus = [SimpleNamespace(uuid=uuid) for uuid in uuids]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpus[number])


def test_each_process_uses_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch):
    fake_gpus(monkeypatch, "a", "b")
    assert [_own_gpu("auto", size=2, local_rank=rank) for rank in (0, 1)] == [0, 1]
    for device, rank in (("auto", 2), ("cuda:0", 0)):
        with pytest.raises(RunError, match="3 processes need a GPU each, but this machine has 2"):
            _own_gpu(device, size=3, local_rank=rank)


def test_processes_that_use_the_same_gpu_are_refused(monkeypatch: pytest.MonkeyPatch):
    fake_gpus(monkeypatch, "a")  # each process may see only its own GPU, as number 0
    assert [_own_gpu("auto", size=4, local_rank=rank) for rank in (0, 1, 3)] == [0, 0, 0]
    # Another GPU of this machine, or the same number on another machine, is another GPU.
    for other in ((platform.node(), "b"), ("elsewhere", "a")):
        monkeypatch.setattr(World, "gather", lambda self, value, other=other: [other, value])
        _check_own_gpu(World(1, 2))
    monkeypatch.setattr(World, "gather", lambda self, value: [value, value])
    with pytest.raises(RunError, match="2 processes need a GPU each, but this machine has 1"):
        _check_own_gpu(World(1, 2))
