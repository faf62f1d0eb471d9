"""Time that a device waits for data and computes, measured without waiting for the device.

On CUDA, events are recorded around the network's work and read after they have happened; on a CPU
the clock is read.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
_GIB = 2**30


@dataclass(frozen=True)
class ThroughputStats:
    """Use of a device during a measurement.

    Attributes:
        seconds: Duration of the measurement.
        num_patches: Number of patches computed.
        data_seconds: Time that this process waited for data.
        network_seconds: Time that the device computed the network; None if it is not measured.
        memory_gib: Peak GPU memory in use and total GPU memory; None except on CUDA.
    """

    seconds: float
    num_patches: int
    data_seconds: float
    network_seconds: float | None
    memory_gib: tuple[float, float] | None

    @property
    def rate(self) -> float:
        """Patches per second."""
        return self.num_patches / self.seconds

    def shares(self) -> dict[str, float]:
        """Return the shares of the time, 0..1, and the memory, by column name."""
        shares = {"data_wait_share": self.data_seconds / self.seconds}
        if self.network_seconds is not None:
            shares["network_share"] = self.network_seconds / self.seconds
        if self.memory_gib is not None:
            shares["gpu_memory_peak_gib"], shares["gpu_memory_gib"] = self.memory_gib
        return shares

    def __str__(self) -> str:
        text = f"{self.data_seconds / self.seconds:.0%} of the time waiting for data"
        if self.network_seconds is not None:
            text += f", {self.network_seconds / self.seconds:.0%} in the network"
        if self.memory_gib is not None:
            text += ", GPU memory {:.1f} of {:.0f} GiB".format(*self.memory_gib)
        return text


class ThroughputMeter:
    """Stopwatch for the work of one device; ``start`` begins a new measurement."""

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
        items = iter(source)
        while True:
            started = perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._data_seconds += perf_counter() - started
            yield item

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

    def stats(self) -> ThroughputStats:
        """Return the use since ``start``; work that the device has not finished is left out."""
        self._read_events()
        memory = None
        if self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            memory = torch.cuda.max_memory_allocated(self._device) / _GIB, total / _GIB
        return ThroughputStats(
            seconds=max(perf_counter() - self._started, 1e-9),
            num_patches=self._num_patches,
            data_seconds=self._data_seconds,
            # Calls on MPS return before the work is done, and there are no events to time it.
            network_seconds=None if self._device.type == "mps" else self._network_seconds,
            memory_gib=memory,
        )

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

    def _read_events(self) -> None:
        while self._events and self._events[0][1].query():
            start, end = self._events.popleft()
            self._network_seconds += start.elapsed_time(end) / 1000
