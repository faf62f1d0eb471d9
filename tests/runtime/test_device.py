import re
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime.device import (
    DeviceConfig,
    TooLittleMemoryError,
    _warn_unused_gpus,
    oom_as_error,
    select_device,
)
from wsi_idc.runtime.throughput import ThroughputMeter, ThroughputStats
from wsi_idc.runtime.transfer import DeviceTransfer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NUM_GPUS = torch.cuda.device_count()
GIB = 2**30


def test_auto_precision_on_a_cpu_is_fp32():
    config, other = select_device("cpu"), select_device("cpu")
    assert config == other == DeviceConfig(CPU, "fp32")
    assert config.throughput is config.throughput is not other.throughput
    assert re.fullmatch(r"cpu \(\d+ threads\), fp32", str(config))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(((name,), "is not one of auto, cpu") for name in ("gpu", "", "mps:1", "cpu:1", "cpu:")),
        *(((f"cuda:{end}",), "is not one of auto") for end in ("x", "", "01", "²", "1000")),
        (("cpu", "fp16"), "a CPU cannot compute in fp16"),
        (("cpu", "fp8"), "precision 'fp8' is not one of auto, fp32"),
        ((f"cuda:{NUM_GPUS}",), f"torch sees {NUM_GPUS} CUDA GPUs"),
    ],
)
def test_unavailable_device_is_refused(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(DeviceError, match=message):
        select_device(*words)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match="--compile needs a C"):
        select_device("cpu", compiled=True)


@pytest.mark.parametrize(("cores", "limit"), [("1", "3"), ("4", "1")])
def test_torch_uses_the_available_threads(monkeypatch: pytest.MonkeyPatch, cores: str, limit: str):
    before = torch.get_num_threads()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", cores)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    select_device("cpu")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_autocast_follows_the_precision():
    product = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with select_device("cpu", precision).autocast():
            assert (product @ product).dtype == dtype


@pytest.mark.parametrize(
    ("what", "text"), [(8, "8 patches at once; give a smaller --batch-size"), ("it", "it")]
)
def test_lack_of_memory_is_an_error_that_torch_code_catches_too(what: int | str, text: str):
    message = f"^cpu has too little memory for {text}$"
    with (
        pytest.raises(torch.OutOfMemoryError, match=message) as error,
        oom_as_error(what, torch.device("cpu")),
    ):
        raise torch.OutOfMemoryError
    assert error.type is TooLittleMemoryError
    assert issubclass(error.type, DeviceError)


def test_gpus_of_slurm_that_torch_does_not_see_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    _warn_unused_gpus.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    select_device("cpu")
    assert caplog.messages == []
    for _ in range(2):
        assert select_device().device.type in ("cpu", "mps")
    assert caplog.messages == [
        "SLURM gave this job GPUs (SLURM_JOB_GPUS=0,1), but torch sees none, so everything runs on "
        "the CPU: this torch is built for CPUs; install one built for CUDA; see wsi-idc doctor, or "
        "give --device cpu to compute without a GPU"
    ]

    # No warning without GPUs of SLURM, or with GPUs of torch.
    caplog.clear()
    _warn_unused_gpus.cache_clear()
    monkeypatch.delenv("SLURM_JOB_GPUS")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    select_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    config = select_device()
    assert (config.device.type, config.precision) == ("cuda", "bf16")
    assert caplog.messages == []


class Clock:
    """A clock that only ``advance`` moves, and a GPU that is some seconds behind it."""

    now, gpu_delay, num_resets = 100.0, 0.0, 0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def items(self, num: int, seconds: float) -> Iterator[int]:
        for number in range(num):
            self.advance(seconds)
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("wsi_idc.runtime.device.perf_counter", lambda: clock.now)
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
    with pytest.raises(ZeroDivisionError), meter.time_compute(8):
        clock.advance(2.5)
        raise ZeroDivisionError  # failed work does not count
    assert items == [0, 1, 2, 3]
    assert meter.summary_line() == "16% waiting for data"
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
    assert clock.num_resets == 1
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
    assert clock.num_resets == 2
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
        text = "mapped 3000 patches, 1500 patches/s, 0% of the time waiting for data"
        assert (record.levelname, record.message) == ("INFO", text + end)
    assert meter.stats() == ThroughputStats(3000, 1500.0, {"data_wait_share": 0.0})


def test_cpu_transfer_copies_nothing():
    transfer = DeviceTransfer(torch.device("cpu"))
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = transfer.upload(array).get()
    array[0, 0] = 9
    assert tensor[0, 0] == 9
    result = torch.ones(3)
    (downloaded,) = transfer.download([result]).arrays()
    result[1] = 5
    np.testing.assert_array_equal(downloaded, [1, 5, 1])
