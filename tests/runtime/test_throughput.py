import logging
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
    """Stands still but for ``pass_``."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    return clock


class Device:
    """A GPU that is so many seconds behind the host; nobody may wait for it."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.behind, self.resets = clock, 0.0, 0
        device = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                assert stream == "stream of cuda:0"
                self.at = clock.now + device.behind

            def query(self) -> bool:
                return self.at <= clock.now

            def elapsed_time(self, end: "Event") -> float:
                assert self.query() and end.query()
                return 1000 * (end.at - self.at)

        def reset(device: torch.device) -> None:
            self.resets += 1

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


def source(clock: Clock, num: int, seconds: float) -> Iterator[int]:
    for number in range(num):
        clock.pass_(seconds)
        yield number


def test_on_a_cpu_the_clock_tells(clock: Clock):
    usage = ThroughputMeter(CPU)
    clock.pass_(50)
    usage.begin()
    seen = []
    for item in usage.time_data_wait(source(clock, 4, 0.5)):
        with usage.time_compute(8):
            clock.pass_(1.5)
        clock.pass_(0.5)
        seen.append(item)
    assert seen == [0, 1, 2, 3]
    assert usage.summary_line() == "20% waiting for data"
    used = usage.used()
    assert used == ThroughputStats(10.0, 32, waited=2.0, computed=6.0, memory_gib=None)
    assert used.rate == 3.2
    assert used.shares() == {"data_wait_share": 0.2, "network_share": 0.6}
    assert str(used) == "20% of the time waiting for data, 60% in the network"


def test_on_a_gpu_events_tell_and_nobody_waits_for_them(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    device = Device(clock, monkeypatch)
    usage = ThroughputMeter(CUDA)
    assert device.resets == 1
    for _ in usage.time_data_wait(source(clock, 3, 1.0)):
        device.behind = 3.0
        with usage.time_compute(8):
            # The host only asks for it; the device takes two seconds.
            device.behind = 5.0
    assert usage.used() == ThroughputStats(
        3.0, 24, waited=3.0, computed=0.0, memory_gib=(3.0, 80.0)
    )
    clock.pass_(3.0)  # by now the device has come to the end of the first of three
    assert usage.used().computed == 2.0
    clock.pass_(4.0)
    used = usage.used()
    assert used == ThroughputStats(10.0, 24, waited=3.0, computed=6.0, memory_gib=(3.0, 80.0))
    assert used.shares() == {
        "data_wait_share": 0.3,
        "network_share": 0.6,
        "gpu_memory_peak_gib": 3.0,
        "gpu_memory_gib": 80.0,
    }
    assert str(used) == (
        "30% of the time waiting for data, 60% in the network, GPU memory 3.0 of 80 GiB"
    )
    usage.begin()
    assert device.resets == 2
    clock.pass_(1.0)
    assert usage.used() == ThroughputStats(1.0, 0, waited=0.0, computed=0.0, memory_gib=(3.0, 80.0))


def test_events_of_a_long_epoch_are_read_on_the_way(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    Device(clock, monkeypatch)
    usage = ThroughputMeter(CUDA)
    for _ in range(1000):
        with usage.time_compute(1):
            clock.pass_(0.5)
    assert len(usage._unread) <= 65
    assert usage.used() == ThroughputStats(
        500.0, 1000, waited=0.0, computed=500.0, memory_gib=(3.0, 80.0)
    )


def test_work_that_failed_does_not_count(clock: Clock):
    usage = ThroughputMeter(CPU)
    with pytest.raises(ZeroDivisionError), usage.time_compute(8):
        clock.pass_(1.0)
        raise ZeroDivisionError
    assert usage.used() == ThroughputStats(1.0, 0, waited=0.0, computed=0.0, memory_gib=None)


def test_of_a_device_that_cannot_tell_only_the_wait_is_said(clock: Clock):
    usage = ThroughputMeter(torch.device("mps"))
    with usage.time_compute(1):
        clock.pass_(1.0)
    assert usage.used().shares() == {"data_wait_share": 0.0}
    assert str(usage.used()) == "0% of the time waiting for data"


def test_the_line_at_the_end(clock: Clock, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="wsi_idc")
    usage = ThroughputMeter(CPU)
    usage.log("mapped")
    with usage.time_compute(3000):
        clock.pass_(2.0)
    usage.log("mapped")
    assert caplog.messages == [
        "mapped 3000 patches, 1500 patches/s, 0% of the time waiting for data, 100% in the network"
    ]
    assert caplog.records[0].levelno == logging.INFO


def test_each_choice_of_a_device_has_a_stopwatch_of_its_own():
    one, other = select_device("cpu"), select_device("cpu")
    assert one == other == DeviceConfig(CPU, "fp32")
    assert one.usage is not other.usage
