import re
from pathlib import Path

import pytest
import torch

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime import device
from wsi_idc.runtime.device import DeviceConfig, select_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CPU_HAS_BF16 = device.cpu_has_bf16  # conftest.py replaces this function
NUM_GPUS = torch.cuda.device_count()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 vaes\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nvmx flags\t: bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nmodel name\t: bf16\n", False),
        (None, False),
    ],
)
def test_a_cpu_with_bf16_is_recognized(
    content: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    info = tmp_path / "cpuinfo"
    if content is not None:
        info.write_text(content)
    monkeypatch.setattr(device, "_CPU_INFO", info)
    monkeypatch.setattr(device, "cpu_has_bf16", CPU_HAS_BF16.__wrapped__)
    assert device.cpu_has_bf16() == expected
    assert select_device("cpu").precision == ("bf16" if expected else "fp32")
    assert select_device("cpu", training=True).precision == "fp32"
    assert select_device("cpu", "fp32").precision == "fp32"


def test_auto_precision_on_a_cpu_without_bf16_is_fp32():
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
        ((f"cuda:{NUM_GPUS}",), f"torch finds {NUM_GPUS} CUDA GPUs"),
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
        device.oom_as_error(what, torch.device("cpu")),
    ):
        raise torch.OutOfMemoryError
    assert error.type is device.TooLittleMemoryError
    assert issubclass(error.type, DeviceError)


def test_gpus_of_slurm_that_torch_does_not_see_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    device._warn_unused_gpus.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    select_device("cpu")
    assert caplog.messages == []
    for _ in range(2):
        assert select_device().device.type in ("cpu", "mps")
    assert caplog.messages == [
        "SLURM assigned GPUs to this job (SLURM_JOB_GPUS=0,1), but torch finds no GPU and uses the "
        "CPU: this torch is built for CPUs; install a torch that is built for CUDA; run "
        "wsi-idc doctor for details, or give --device cpu if the job needs no GPU"
    ]

    # No warning without GPUs of SLURM, or with GPUs of torch.
    caplog.clear()
    device._warn_unused_gpus.cache_clear()
    monkeypatch.delenv("SLURM_JOB_GPUS")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    select_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    config = select_device()
    assert (config.device.type, config.precision) == ("cuda", "bf16")
    assert caplog.messages == []
