"""Throughput of a computation, and the time for which the computation waits for data."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch

from wsi_idc.core.text import count

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
_GIB = 2**30


@dataclass(frozen=True)
class ThroughputStats:
    """Statistics of the use of a device during a measurement.

    Attributes:
        num_patches: Number of patches computed.
        rate: Patches per second.
        shares: Fractions of the time: "data_wait_share" and "network_share". On CUDA, the dict also
            has the GPU memory in GiB: "gpu_memory_peak_gib" and "gpu_memory_gib".
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
    """Object that measures the work of one device; ``start`` begins a new measurement.

    Several threads may use the object. It never waits for the device. On CUDA, it records an event
    before and after the work of the network, and reads both events after the work has ended. On a
    CPU, it reads the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self.start()

    def start(self) -> None:
        """Begin a new measurement: set all counts and times to zero."""
        self._started, self._num_patches = perf_counter(), 0
        self._data_seconds = self._network_seconds = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        if self._device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(self._device)

    def time_data_wait(self, source: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of ``source``; measure the time of waiting for each item."""
        started = perf_counter()
        for item in source:
            self._data_seconds += perf_counter() - started
            yield item
            started = perf_counter()
        self._data_seconds += perf_counter() - started

    @contextlib.contextmanager
    def time_data_read(self, *, share: float) -> Iterator[None]:
        """Context manager: add ``share`` of the time of the block to the time of waiting for data.

        With n threads that read and compute, ``share`` is 1 / n.
        """
        started = perf_counter()
        yield
        with self._lock:
            self._data_seconds += share * (perf_counter() - started)

    @contextlib.contextmanager
    def time_compute(self, num_patches: int, *, share: float = 1.0) -> Iterator[None]:
        """Context manager: if the block succeeds, add its time to the time of the network.

        With n threads that compute on a CPU, ``share`` is 1 / n.
        """
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
            with self._lock:
                self._network_seconds += share * (perf_counter() - started)
        with self._lock:
            self._num_patches += num_patches

    def _read_events(self) -> None:
        while self._events and self._events[0][1].query():
            start, end = self._events.popleft()
            self._network_seconds += start.elapsed_time(end) / 1000

    def stats(self) -> ThroughputStats:
        """Return the statistics since ``start``; the time of unfinished work is not included."""
        self._read_events()
        seconds = max(perf_counter() - self._started, 1e-9)
        shares = {"data_wait_share": self._data_seconds / seconds}
        # On MPS, calls return before the work is done, and no events measure the time of the work.
        if self._device.type != "mps":
            shares["network_share"] = self._network_seconds / seconds
        if self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            shares["gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(self._device) / _GIB
            shares["gpu_memory_gib"] = total / _GIB
        return ThroughputStats(self._num_patches, self._num_patches / seconds, shares)

    def summary_line(self) -> str:
        """Return a text for a progress bar with the share of the time of waiting for data."""
        seconds = max(perf_counter() - self._started, 1e-9)
        return f"{self._data_seconds / seconds:.0%} waiting"

    def log(self, action: str) -> None:
        """Log the statistics since ``start`` if at least one patch was computed.

        The log line begins with ``action``.
        """
        stats = self.stats()
        if stats.num_patches:
            logger.info(
                "%s %s, %.0f patches/s, %s",
                *(action, count(stats.num_patches, "patch", "patches"), stats.rate, stats),
            )
