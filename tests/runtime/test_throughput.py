from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from wsi_idc.runtime import throughput as module
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.runtime.throughput import ThroughputMeter, ThroughputStats

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30


class Clock:
    """A clock that only ``advance`` moves, and a GPU that is some seconds behind it."""

    def __init__(self) -> None:
        self.now, self.gpu_delay, self.num_resets = 100.0, 0.0, 0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def items(self, num: int, seconds: float) -> Iterator[int]:
        for number in range(num):
            self.advance(seconds)
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
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

    def reset(device: torch.device) -> None:
        clock.num_resets += 1

    fakes = {
        "Event": Event,
        "current_stream": lambda device: f"stream of {device}",
        "is_initialized": lambda: True,
        "reset_peak_memory_stats": reset,
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
    assert items == [0, 1, 2, 3]
    assert meter.summary_line() == "20% waiting for data"
    stats = meter.stats()
    assert stats == ThroughputStats(10.0, 32, 2.0, 6.0, memory_gib=None)
    assert stats.rate == 3.2
    assert stats.shares() == {"data_wait_share": 0.2, "network_share": 0.6}
    assert str(stats) == "20% of the time waiting for data, 60% in the network"


@pytest.mark.usefixtures("gpu")
def test_gpu_times_are_those_of_finished_events(clock: Clock):
    meter, memory = ThroughputMeter(CUDA), (3.0, 80.0)
    assert clock.num_resets == 1
    for _ in meter.time_data_wait(clock.items(3, 1.0)):
        clock.gpu_delay = 3.0
        with meter.time_compute(8):
            # The host only queues the work; the GPU takes two seconds.
            clock.gpu_delay = 5.0
    assert meter.stats() == ThroughputStats(3.0, 24, 3.0, 0.0, memory)
    clock.advance(3.0)  # the GPU has finished the first of three batches
    assert meter.stats().network_seconds == 2.0
    clock.advance(4.0)
    stats = meter.stats()
    assert stats == ThroughputStats(10.0, 24, 3.0, 6.0, memory)
    assert stats.shares() == {
        "data_wait_share": 0.3,
        "network_share": 0.6,
        "gpu_memory_peak_gib": 3.0,
        "gpu_memory_gib": 80.0,
    }
    assert str(stats) == (
        "30% of the time waiting for data, 60% in the network, GPU memory 3.0 of 80 GiB"
    )
    meter.start()
    assert clock.num_resets == 2
    clock.advance(1.0)
    assert meter.stats() == ThroughputStats(1.0, 0, 0.0, 0.0, memory)


@pytest.mark.usefixtures("gpu")
def test_events_of_a_long_epoch_are_not_kept(clock: Clock):
    meter = ThroughputMeter(CUDA)
    for _ in range(1000):
        with meter.time_compute(1):
            clock.advance(0.5)
    assert len(meter._events) <= 1
    assert meter.stats() == ThroughputStats(500.0, 1000, 0.0, 500.0, (3.0, 80.0))


def test_failed_work_does_not_count(clock: Clock):
    meter = ThroughputMeter(CPU)
    with pytest.raises(ZeroDivisionError), meter.time_compute(8):
        clock.advance(1.0)
        raise ZeroDivisionError
    assert meter.stats() == ThroughputStats(1.0, 0, 0.0, 0.0, memory_gib=None)


def test_mps_reports_only_the_wait_for_data(clock: Clock):
    meter = ThroughputMeter(torch.device("mps"))
    with meter.time_compute(1):
        clock.advance(1.0)
    assert meter.stats().shares() == {"data_wait_share": 0.0}
    assert str(meter.stats()) == "0% of the time waiting for data"


def test_log_line_of_a_command(clock: Clock, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="wsi_idc")
    meter = ThroughputMeter(CPU)
    meter.log("mapped")
    with meter.time_compute(3000):
        clock.advance(2.0)
    meter.log("mapped")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "INFO",
            "mapped 3000 patches, 1500 patches/s, 0% of the time waiting for data, "
            "100% in the network",
        )
    ]


def test_each_device_config_has_its_own_meter():
    first, second = select_device("cpu"), select_device("cpu")
    assert first == second == DeviceConfig(CPU, "fp32")
    assert first.throughput is not second.throughput
