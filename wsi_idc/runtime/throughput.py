"""How a device is used: how long it waits for data, and how long the network computes.

Nothing here waits for the device. On CUDA, events are put around the network's work and are read
when it has long been done; on a CPU a clock is enough.
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
_MAX_UNREAD = 64


@dataclass(frozen=True)
class ThroughputStats:
    """What became of the time of a stretch of work.

    Attributes:
        seconds: Of the stretch.
        num_patches: Computed in it.
        waited: Seconds in which this process waited for data.
        computed: Seconds in which the device was in the network; None where that is not measured.
        memory_gib: Largest GPU memory in use, and all that the GPU has; None but on CUDA.
    """

    seconds: float
    num_patches: int
    waited: float
    computed: float | None
    memory_gib: tuple[float, float] | None

    @property
    def rate(self) -> float:
        """Patches a second."""
        return self.num_patches / self.seconds

    def shares(self) -> dict[str, float]:
        """Return the shares of the time, 0..1, and the memory, by names that a table may have."""
        found = {"data_wait_share": self.waited / self.seconds}
        if self.computed is not None:
            found["network_share"] = self.computed / self.seconds
        if self.memory_gib is not None:
            found["gpu_memory_peak_gib"], found["gpu_memory_gib"] = self.memory_gib
        return found

    def __str__(self) -> str:
        parts = [f"{self.waited / self.seconds:.0%} of the time waiting for data"]
        if self.computed is not None:
            parts.append(f"{self.computed / self.seconds:.0%} in the network")
        if self.memory_gib is not None:
            peak, total = self.memory_gib
            parts.append(f"GPU memory {peak:.1f} of {total:.0f} GiB")
        return ", ".join(parts)


class ThroughputMeter:
    """A stopwatch for the work of one device, begun anew with each stretch of work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin a stretch."""
        self._begun, self._num_patches = perf_counter(), 0
        self._waited = self._computed = 0.0
        self._unread: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        if self._device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(self._device)

    def time_data_wait(self, source: Iterable[Item]) -> Iterator[Item]:
        """Yield what ``source`` yields; the time that it takes is a wait for data."""
        coming = iter(source)
        while True:
            started = perf_counter()
            try:
                item = next(coming)
            except StopIteration:
                return
            finally:
                self._waited += perf_counter() - started
            yield item

    @contextlib.contextmanager
    def time_compute(self, num_patches: int) -> Iterator[None]:
        """Count a block as work of the network on so many patches, if it ends well."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            start.record(stream)
            yield
            end.record(stream)
            self._unread.append((start, end))
            if len(self._unread) > _MAX_UNREAD:
                self._read_events()
        else:
            started = perf_counter()
            yield
            self._computed += perf_counter() - started
        self._num_patches += num_patches

    def used(self) -> ThroughputStats:
        """Return what became of the stretch so far, of the device as far as it has come."""
        self._read_events()
        return ThroughputStats(
            seconds=max(perf_counter() - self._begun, 1e-9),
            num_patches=self._num_patches,
            waited=self._waited,
            # What is asked of an MPS device returns before it is done, and no event tells when.
            computed=None if self._device.type == "mps" else self._computed,
            memory_gib=self._memory(),
        )

    def summary_line(self) -> str:
        """Return, cheaply, what a progress line has room for."""
        return f"{self._waited / max(perf_counter() - self._begun, 1e-9):.0%} waiting for data"

    def log(self, what: str) -> None:
        """Log what became of the stretch so far; nothing where nothing was computed in it."""
        used = self.used()
        if used.num_patches:
            logger.info(
                "%s %d patches, %.0f patches/s, %s", what, used.num_patches, used.rate, used
            )

    def _read_events(self) -> None:
        while self._unread and self._unread[0][1].query():
            start, end = self._unread.popleft()
            self._computed += start.elapsed_time(end) / 1000

    def _memory(self) -> tuple[float, float] | None:
        if self._device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self._device)
        return peak / _GIB, torch.cuda.get_device_properties(self._device).total_memory / _GIB
