"""Several processes that train one model, a process a device.

torchrun or srun starts them and says which is which; without either there is one.
"""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from wsi_idc.core.errors import PeerLostError, RunError, first_line

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

# A dead process is noticed at once where its connection breaks, else after this.
TIMEOUT = timedelta(minutes=10)
# For what one process does while the others wait: packing a large tree.
LONG_TIMEOUT = timedelta(hours=4)


@dataclass(frozen=True)
class World:
    """The processes of one training, as one of them sees them.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        control: Group in which numbers on the CPU are exchanged, None where it is alone.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def part(self, num: int) -> slice:
        """Return which of ``num`` things, in order, are this process's."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def largest(self, value: int) -> int:
        """Return the largest value that any process gives."""
        return int(max(self._all(value)))

    def sum(self, value: float) -> float:
        """Return the sum of every process's value."""
        return float(sum(self._all(value)))

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in their order."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self.control)
        return found

    def copy_from_writer(self, module: "nn.Module") -> None:
        """Give all processes the writer's weights and buffers of a module."""
        if self.size == 1:
            return
        from torch import distributed

        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until every process is here, for long if need be."""
        if self.size > 1:
            from torch import distributed

            distributed.monitored_barrier(self.control, timeout=LONG_TIMEOUT)

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """Let the writer do a block before the others do it."""
        if not self.is_writer:
            self.wait()
        yield
        if self.is_writer:
            self.wait()

    def _all(self, value: float) -> list[float]:
        if self.size == 1:
            return [value]
        import torch
        from torch import distributed

        found = torch.zeros(self.size, dtype=torch.float64)
        found[self.rank] = value
        distributed.all_reduce(found, group=self.control)
        return [float(number) for number in found]


SINGLE_PROCESS = World()


@contextmanager
def init_distributed(device: str) -> Iterator[World]:
    """Join the processes that torchrun or srun started, for the length of a block.

    Args:
        device: Kind of device that they compute on, "cpu", "cuda" or "auto".

    Raises:
        PeerLostError: Another process ended before its time.
        RunError: They do not find each other.
    """
    rank, size, local_rank = _place()
    if size == 1:
        yield SINGLE_PROCESS
        return
    import torch
    from torch import distributed

    on_gpu = torch.cuda.is_available() and not device.startswith("cpu")
    if on_gpu:
        torch.cuda.set_device(_own_gpu(device, size=size, local_rank=local_rank))
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", rank=rank, world_size=size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the {size} processes of this training do not find each other "
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
            f"process {rank} of {size} lost its connection to another one, which has ended or "
            "hangs; see that one's log for why, then run the same command again: it goes on from "
            "the last save"
        ) from None
    finally:
        # Without it a process may abort at exit.
        distributed.destroy_process_group()


def _own_gpu(device: str, *, size: int, local_rank: int) -> int:
    """Return which of the GPUs that this process sees is its own.

    Raises:
        RunError: There is none for it.
    """
    import torch

    seen = torch.cuda.device_count()
    # With srun --gpus-per-task each process sees its own one alone, as number 0.
    mine = 0 if seen == 1 else local_rank
    if ":" in device or mine >= seen:
        raise _too_few_gpus(size, seen)
    return mine


def _check_own_gpu(world: World) -> None:
    """Raise RunError where two processes have one GPU, which would hang or fail far from here."""
    import torch

    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    if len(set(world.gather((platform.node(), str(uuid))))) < world.size:
        raise _too_few_gpus(world.size, torch.cuda.device_count())


def _too_few_gpus(size: int, seen: int) -> RunError:
    return RunError(
        f"{size} processes want a GPU each, of {seen} on this machine; "
        "start one a GPU, with --device auto"
    )


def _place() -> tuple[int, int, int]:
    """Return rank, size and local rank as torchrun or srun say."""
    env = os.environ
    if "WORLD_SIZE" in env and "RANK" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0"))
    # SLURM_NTASKS alone says what the job may start, not what srun did.
    size = env.get("SLURM_STEP_NUM_TASKS", "1")
    if not size.isdecimal() or int(size) == 1:
        return 0, 1, 0
    if not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        raise RunError(
            f"srun started {size} processes that do not know where to meet; set MASTER_ADDR to the "
            'first of `scontrol show hostnames "$SLURM_JOB_NODELIST"` and MASTER_PORT to a free '
            "port, or start one process with srun --ntasks=1"
        )
    return int(env["SLURM_PROCID"]), int(size), int(env.get("SLURM_LOCALID", "0"))


def _is_lost_peer(error: RuntimeError) -> bool:
    from torch import distributed

    # gloo has no class of its own for it.
    words = ("gloo", "Connection closed", "Connection reset", "monitoredBarrier", "Broken pipe")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
