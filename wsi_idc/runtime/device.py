"""The network's device: choice, precision, transfer of patches and results, and use.

Transfers to and from a GPU use pinned memory and run while it computes: patches are copied on a
stream of their own, results on the stream that computed them. Only the consumer of a result waits,
and only for that result. On a CPU nothing is transferred.
"""

import contextlib
import functools
import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime.resources import keep_freed_memory, num_threads, slurm_gpus

Item = TypeVar("Item")

logger = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_GIB = 2**30
_DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TooLittleMemoryError(DeviceError, torch.OutOfMemoryError):
    """The device has too little memory; callers may retry with less as for torch's own error."""


@dataclass(frozen=True)
class DeviceConfig:
    """A device and the precision in which it computes the network.

    Attributes:
        device: Device of the network.
        precision: "fp32", "bf16" or "fp16".
        compiled: Whether the network is compiled by torch.compile.
    """

    device: torch.device
    precision: str
    compiled: bool = False

    @functools.cached_property
    def throughput(self) -> "ThroughputMeter":
        """Meter of the device's use."""
        return ThroughputMeter(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context manager in which the network runs."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def __str__(self) -> str:
        name = str(self.device)
        if self.device.type == "cuda":
            name += f" ({torch.cuda.get_device_name(self.device)})"
        if self.device.type == "cpu":
            name += f" ({torch.get_num_threads()} threads)"
        return f"{name}, {self.precision}"


def select_device(
    device: str = "auto", precision: str = "auto", *, compiled: bool = False
) -> DeviceConfig:
    """Resolve a device and a precision by name; "auto" selects the best available.

    Raises:
        DeviceError: The device, its precision or the compiler is not available.
    """
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        raise DeviceError("--compile needs a C++ compiler; install g++, or leave out --compile")
    selected = _find_device(device)
    if selected.type == "cpu":
        torch.set_num_threads(num_threads())
        keep_freed_memory()
    if precision == "auto":
        has_bf16 = selected.type == "cuda" and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        precision = "bf16" if has_bf16 else "fp32"
    if precision not in _DTYPES:
        raise DeviceError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and selected.type == "cpu":
        raise DeviceError("a CPU cannot compute in fp16; use --precision fp32 or bf16")
    if precision == "fp32":
        # The default rounds convolutions on a GPU to the 10 bits of TF32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return DeviceConfig(selected, precision, compiled)


def _find_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if gpus := slurm_gpus():
            _warn_unused_gpus(gpus)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not _DEVICE.fullmatch(name):
        raise DeviceError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, ..., mps")
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("this machine has no MPS device; use --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"device {name}: torch sees {count} CUDA GPUs; use --device cpu or auto")
    return torch.device(name)


@functools.cache
def _warn_unused_gpus(gpus: str) -> None:
    if torch.version.cuda is None:
        reason = "this torch is built for CPUs; install one built for CUDA"
    else:
        reason = f"torch needs a driver for CUDA {torch.version.cuda} and access to the devices"
    logger.warning(
        "SLURM gave this job GPUs (%s), but torch sees none, so everything runs on the CPU: %s; "
        "see wsi-idc doctor, or give --device cpu to compute without a GPU",
        gpus,
        reason,
    )


@contextlib.contextmanager
def oom_as_error(workload: int | str, device: torch.device) -> Iterator[None]:
    """Convert torch.OutOfMemoryError inside the block into a one-line TooLittleMemoryError.

    Args:
        workload: Number of patches in the batch, or a text that names the work.
        device: Device that is named in the message.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        if isinstance(workload, int):
            workload = f"{workload} patches at once; give a smaller --batch-size"
        raise TooLittleMemoryError(f"{device} has too little memory for {workload}") from None


@dataclass(frozen=True)
class ThroughputStats:
    """Use of a device during a measurement.

    Attributes:
        num_patches: Number of patches computed.
        rate: Patches per second.
        shares: Shares of the time, 0..1, and on CUDA the memory in GiB, by column name.
    """

    num_patches: int
    rate: float
    shares: dict[str, float]

    def __str__(self) -> str:
        text = f"{self.shares['data_wait_share']:.0%} of the time waiting for data"
        if "network_share" in self.shares:
            text += f", {self.shares['network_share']:.0%} in the network"
        if "gpu_memory_gib" in self.shares:
            text += ", GPU memory {gpu_memory_peak_gib:.1f} of {gpu_memory_gib:.0f} GiB".format(
                **self.shares
            )
        return text


class ThroughputMeter:
    """Stopwatch for the work of one device; ``start`` begins a new measurement.

    It never waits for the device: on CUDA, events are recorded around the network's work and read
    after they have happened; on a CPU the clock is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Set all counts to zero."""
        self._started, self._num_patches = perf_counter(), 0
        self._data_seconds = self._network_seconds = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        if self._device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(self._device)

    def time_data_wait(self, source: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of ``source``; count the time until each as waiting for data."""
        started = perf_counter()
        for item in source:
            self._data_seconds += perf_counter() - started
            yield item
            started = perf_counter()
        self._data_seconds += perf_counter() - started

    @contextlib.contextmanager
    def time_compute(self, num_patches: int) -> Iterator[None]:
        """Count the block as the network's work on a batch, unless the block raises."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            start.record(stream)
            yield
            end.record(stream)
            self._events.append((start, end))
            self._read_events()
        else:
            started = perf_counter()
            yield
            self._network_seconds += perf_counter() - started
        self._num_patches += num_patches

    def _read_events(self) -> None:
        while self._events and self._events[0][1].query():
            start, end = self._events.popleft()
            self._network_seconds += start.elapsed_time(end) / 1000

    def stats(self) -> ThroughputStats:
        """Return the use since ``start``; work that the device has not finished is left out."""
        self._read_events()
        seconds = max(perf_counter() - self._started, 1e-9)
        shares = {"data_wait_share": self._data_seconds / seconds}
        # Calls on MPS return before the work is done, and there are no events to time it.
        if self._device.type != "mps":
            shares["network_share"] = self._network_seconds / seconds
        if self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            shares["gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(self._device) / _GIB
            shares["gpu_memory_gib"] = total / _GIB
        return ThroughputStats(self._num_patches, self._num_patches / seconds, shares)

    def summary_line(self) -> str:
        """Return a text for a progress bar."""
        seconds = max(perf_counter() - self._started, 1e-9)
        return f"{self._data_seconds / seconds:.0%} waiting for data"

    def log(self, action: str) -> None:
        """Log the use since ``start``, unless no patch was computed."""
        stats = self.stats()
        if stats.num_patches:
            logger.info(
                "%s %d patches, %.0f patches/s, %s", action, stats.num_patches, stats.rate, stats
            )


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the device that may not be filled yet; ``event`` is the end of its copy."""

    tensor: Tensor
    event: torch.cuda.Event | None = None

    def get(self) -> Tensor:
        """Return the tensor for use on the current stream; only that stream waits for the copy."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.event)
            # It was allocated on another stream: its memory must not be reused before this one.
            self.tensor.record_stream(stream)
        return self.tensor


@dataclass(frozen=True)
class PendingResult:
    """Tensors that are being copied to the host; ``event`` is the end of the copies."""

    tensors: Sequence[Tensor]
    event: torch.cuda.Event | None = None

    def arrays(self) -> list[NDArray[np.float32]]:
        """Wait for the copies and return them as arrays."""
        if self.event is not None:
            self.event.synchronize()
        return [tensor.numpy() for tensor in self.tensors]


class DeviceTransfer:
    """Copies to and from a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def upload(self, array: NDArray) -> DeviceTensor:
        """Start to copy an array, in any thread; the array must not be changed afterwards."""
        tensor = torch.from_numpy(array)
        if self._stream is None:
            return DeviceTensor(tensor.to(self.device))
        with torch.cuda.stream(self._stream):
            copy = tensor.pin_memory().to(self.device, non_blocking=True)
            return DeviceTensor(copy, self._stream.record_event())

    def download(self, tensors: Sequence[Tensor]) -> PendingResult:
        """Start to copy tensors that the current stream computes."""
        if self._stream is None:
            return PendingResult([tensor.cpu() for tensor in tensors])
        copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in tensors
        ]
        return PendingResult(copies, torch.cuda.current_stream(self.device).record_event())
