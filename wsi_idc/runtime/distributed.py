"""Distributed training: several processes, one per device, train one model.

torchrun or srun starts the processes and sets their ranks. Without torchrun and srun, there is only
one process.
"""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from wsi_idc.core.errors import PeerLostError, RunError, first_line

logger = logging.getLogger(__name__)

# A process counts as lost if it does not answer for this time.
TIMEOUT = timedelta(minutes=10)
# Longest time of waiting for the work of another process, such as packing a large tree.
LONG_TIMEOUT = timedelta(hours=4)


@dataclass(frozen=True)
class World:
    """The processes of one training; each process has a ``World`` with its own rank.

    Attributes:
        rank: Number of this process; the first process has the number 0.
        size: Number of processes.
        control: Process group that exchanges values on the CPU; None if there is one process.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Return whether this is the main process (rank 0); only the main process writes files."""
        return self.rank == 0

    def shard(self, num: int) -> slice:
        """Divide ``num`` items among the processes, and return the slice of this process."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def max(self, value: int) -> int:
        """Return the largest ``value`` of all processes."""
        return int(max(self._gather_numbers(value)))

    def sum(self, value: float) -> float:
        """Return the sum of ``value`` over all processes."""
        return float(sum(self._gather_numbers(value)))

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each process, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def broadcast_module(self, module: nn.Module) -> None:
        """Copy the weights and buffers of ``module`` from the main process to all processes."""
        for tensor in module.state_dict().values() if self.size > 1 else ():
            distributed.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait until every process has called ``barrier``; wait at most ``LONG_TIMEOUT``."""
        if self.size > 1:
            distributed.monitored_barrier(self.control, timeout=LONG_TIMEOUT)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Context manager: run the block in the main process first, then in the other processes."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def _gather_numbers(self, value: float) -> list[float]:
        if self.size == 1:
            return [value]
        values = torch.zeros(self.size, dtype=torch.float64)
        values[self.rank] = value
        distributed.all_reduce(values, group=self.control)
        return list(values.tolist())


SINGLE_PROCESS = World()


@contextmanager
def init_distributed(device: str) -> Iterator[World]:
    """Context manager: connect the processes that torchrun or srun started; yield the ``World``.

    Args:
        device: Name of the device: "auto", "cuda" or "cpu".

    Raises:
        PeerLostError: Another process has ended or hangs.
        RunError: The processes cannot connect, or there are fewer GPUs than processes.
    """
    rank, size, local_rank = _read_ranks()
    if size == 1:
        yield SINGLE_PROCESS
        return
    on_gpu = torch.cuda.is_available() and not device.startswith("cpu")
    if on_gpu:
        torch.cuda.set_device(_own_gpu(device, size=size, local_rank=local_rank))
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", rank=rank, world_size=size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the {size} processes of this training cannot connect to each other "
            f"({first_line(error)}); start them with torchrun, or set MASTER_ADDR and MASTER_PORT"
        ) from None
    try:
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
        world = World(rank, size, control)
        if on_gpu:
            _check_own_gpu(world)
        yield world
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        logger.debug("%s", error)
        raise PeerLostError(
            f"process {rank} of {size} lost its connection to another process, which has ended or "
            "hangs; see the log of that process, then run the same command again to resume from "
            "the last save"
        ) from None
    finally:
        # Without this call a process may abort at its exit.
        distributed.destroy_process_group()


def _own_gpu(device: str, *, size: int, local_rank: int) -> int:
    num_gpus = torch.cuda.device_count()
    # With srun --gpus-per-task each process sees only its own GPU, as number 0.
    number = 0 if num_gpus == 1 else local_rank
    if ":" in device or number >= num_gpus:
        raise _too_few_gpus(size, num_gpus)
    return number


def _check_own_gpu(world: World) -> None:
    # Two processes that use the same GPU would hang or fail later.
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    if len(set(world.gather((platform.node(), str(uuid))))) < world.size:
        raise _too_few_gpus(world.size, torch.cuda.device_count())


def _too_few_gpus(size: int, num_gpus: int) -> RunError:
    return RunError(
        f"{size} processes need a GPU each, but this machine has {num_gpus}; start one process per "
        "GPU, with --device auto"
    )


def _read_ranks() -> tuple[int, int, int]:
    """Read rank, number of processes and local rank from environment variables.

    torchrun or srun sets these variables.
    """
    env = os.environ
    if "WORLD_SIZE" in env and "RANK" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0"))
    # srun sets SLURM_STEP_NUM_TASKS to the number of processes that it has started. SLURM_NTASKS is
    # the number of processes that the job may start.
    size = env.get("SLURM_STEP_NUM_TASKS", "1")
    if not size.isdecimal() or int(size) == 1:
        return 0, 1, 0
    if not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        raise RunError(
            f"srun started {size} processes, but they cannot connect; set MASTER_ADDR to the "
            'first line of `scontrol show hostnames "$SLURM_JOB_NODELIST"` and MASTER_PORT to a '
            "free port, or start one process with srun --ntasks=1"
        )
    return int(env["SLURM_PROCID"]), int(size), int(env.get("SLURM_LOCALID", "0"))


def _is_lost_peer(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors, which only the words of their messages identify.
    words = ("gloo", "Connection closed", "Connection reset", "monitoredBarrier", "Broken pipe")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
