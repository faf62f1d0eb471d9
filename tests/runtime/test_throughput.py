from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from wsi_idc.runtime.throughput import ThroughputMeter, ThroughputStats

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30


class Clock:
    """A clock that only ``advance`` moves, and a GPU that is some seconds behind it."""

    now, gpu_delay = 100.0, 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def items(self, num: int, seconds: float) -> Iterator[int]:
        for number in range(num):
            self.advance(seconds)
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("wsi_idc.runtime.throughput.perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace torch's CUDA functions; its events refuse to be read before they have happened."""

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            assert stream == "stream of cuda:0"
            self.time = clock.now + clock.gpu_delay

        def query(self) -> bool:
            return self.time <= clock.now

        def elapsed_time(self, end: "Event") -> float:
            assert self.query() and end.query()
            return 1000 * (end.time - self.time)

    fakes = {
        "Event": Event,
        "current_stream": lambda device: f"stream of {device}",
        "is_initialized": lambda: True,
        "reset_peak_memory_stats": Mock(),
        "max_memory_allocated": lambda device: 3 * GIB,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=80 * GIB),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_cpu_times_are_those_of_the_clock(clock: Clock):
    meter = ThroughputMeter(CPU)
    clock.advance(50)
    meter.start()
    items = []
    for item in meter.time_data_wait(clock.items(4, 0.5)):
        with meter.time_compute(8):
            clock.advance(1.5)
        clock.advance(0.5)
        items.append(item)
    with pytest.raises(ZeroDivisionError), meter.time_compute(8):
        clock.advance(2.5)
        raise ZeroDivisionError  # failed work does not count
    assert items == [0, 1, 2, 3]
    assert meter.summary_line() == "16% waiting"
    stats = meter.stats()
    assert stats == ThroughputStats(32, 2.56, {"data_wait_share": 0.16, "network_share": 0.48})
    assert str(stats) == "16% of the time waiting for data, 48% in the network"


def gpu_stats(num_patches: int, rate: float, wait: float, network: float) -> ThroughputStats:
    times = {"data_wait_share": wait, "network_share": network}
    memory = {"gpu_memory_peak_gib": 3.0, "gpu_memory_gib": 80.0}
    return ThroughputStats(num_patches, rate, times | memory)


@pytest.mark.usefixtures("gpu")
def test_gpu_times_are_those_of_finished_events(clock: Clock):
    meter = ThroughputMeter(CUDA)
    torch.cuda.reset_peak_memory_stats.assert_called_once_with(CUDA)
    for _ in meter.time_data_wait(clock.items(3, 1.0)):
        clock.gpu_delay = 3.0
        with meter.time_compute(8):
            # The host only queues the work; the GPU takes two seconds.
            clock.gpu_delay = 5.0
    assert meter.stats() == gpu_stats(24, 8.0, 1.0, 0.0)
    clock.advance(3.0)  # the GPU has finished the first of three batches
    assert meter.stats() == gpu_stats(24, 4.0, 0.5, 2 / 6)
    clock.advance(4.0)
    stats = meter.stats()
    assert stats == gpu_stats(24, 2.4, 0.3, 0.6)
    assert str(stats) == (
        "30% of the time waiting for data, 60% in the network, GPU memory 3.0 of 80 GiB"
    )
    meter.start()
    assert torch.cuda.reset_peak_memory_stats.call_count == 2
    clock.advance(1.0)
    assert meter.stats() == gpu_stats(0, 0.0, 0.0, 0.0)


@pytest.mark.usefixtures("gpu")
def test_events_of_a_long_epoch_are_not_kept(clock: Clock):
    meter = ThroughputMeter(CUDA)
    for _ in range(1000):
        with meter.time_compute(1):
            clock.advance(0.5)
    assert len(meter._events) <= 1
    assert meter.stats() == gpu_stats(1000, 2.0, 0.0, 1.0)


def test_log_line_of_a_command(clock: Clock, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="wsi_idc")
    # MPS reports only the wait for data.
    for device, end in (("cpu", ", 100% in the network"), ("mps", "")):
        caplog.clear()
        meter = ThroughputMeter(torch.device(device))
        meter.log("mapped")
        with meter.time_compute(3000):
            clock.advance(2.0)
        meter.log("mapped")
        (record,) = caplog.records
        text = "mapped 3,000 patches, 1500 patches/s, 0% of the time waiting for data"
        assert (record.levelname, record.message) == ("INFO", text + end)
    assert meter.stats() == ThroughputStats(3000, 1500.0, {"data_wait_share": 0.0})
