import re

import pytest
import torch

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime.device import (
    TooLittleMemoryError,
    _warn_unused_gpus,
    oom_as_error,
    select_device,
)


def test_auto_precision_on_a_cpu_is_fp32():
    config = select_device("cpu")
    assert (config.device, config.precision) == (torch.device("cpu"), "fp32")
    assert re.fullmatch(r"cpu \(\d+ threads\), fp32", str(config))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(
            ((name,), "is not one of auto, cpu, cuda")
            for name in ("gpu", "cuda:x", "cpu:1", "", "mps:1", "cpu:", "cuda:", "cuda:01")
        ),
        *(((name,), "is not one of auto, cpu, cuda") for name in ("cuda:²", "cuda:1000")),
        (("cpu", "fp16"), "a CPU cannot compute in fp16"),
        (("cpu", "fp8"), "precision 'fp8' is not one of auto, fp32"),
        (
            (f"cuda:{torch.cuda.device_count()}",),
            f"torch sees {torch.cuda.device_count()} CUDA GPUs",
        ),
    ],
)
def test_unavailable_device_is_refused(words: tuple[str, ...], message: str):
    with pytest.raises(DeviceError, match=message):
        select_device(*words)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match="--compile needs a C"):
        select_device("cpu", compiled=True)


@pytest.mark.parametrize(("cores", "limit"), [("1", None), ("4", "1")])
def test_torch_uses_the_available_threads(
    monkeypatch: pytest.MonkeyPatch, cores: str, limit: str | None
):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", cores)
    if limit:
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
    with (
        pytest.raises(
            torch.OutOfMemoryError, match=f"^cpu has too little memory for {text}$"
        ) as error,
        oom_as_error(what, torch.device("cpu")),
    ):
        raise torch.OutOfMemoryError
    assert error.type is TooLittleMemoryError
    assert issubclass(error.type, DeviceError)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _warn_unused_gpus.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("SLURM_JOB_ID", "1")


@pytest.mark.usefixtures("no_gpu")
def test_gpus_of_slurm_that_torch_does_not_see_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
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


@pytest.mark.usefixtures("no_gpu")
def test_no_warning_without_gpus_of_slurm_or_with_gpus_of_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    select_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    config = select_device()
    assert (config.device.type, config.precision) == ("cuda", "bf16")
    assert caplog.messages == []
