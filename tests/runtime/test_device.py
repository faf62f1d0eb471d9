import pytest
import torch

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime.device import _warn_of_waste, select_device
from wsi_idc.runtime.resources import available_cores, num_threads, slurm_gpus


def test_auto_on_a_cpu_is_fp32():
    compute = select_device("cpu")
    assert compute.device == torch.device("cpu")
    assert compute.precision == "fp32"


@pytest.mark.parametrize(
    "name",
    ["gpu", "cuda:x", "cpu:1", "", "mps:1", "cpu:", "cuda:", "cuda:01", "cuda:²", "cuda:1000"],
)
def test_an_unknown_device_is_refused(name: str):
    with pytest.raises(DeviceError, match="is not one of auto, cpu, cuda"):
        select_device(name)


def test_a_gpu_that_is_not_there_is_refused():
    number = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"torch sees {number} CUDA GPUs"):
        select_device(f"cuda:{number}")


def test_half_precision_is_none_for_a_cpu():
    with pytest.raises(DeviceError, match="fp16 is no precision for a CPU"):
        select_device("cpu", "fp16")


def test_threads_are_the_cores_given(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    select_device("cpu")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_fewer_threads_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    select_device("cpu")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_threads_that_are_no_number_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "²")
    assert num_threads() == available_cores()


def test_bf16_autocast_is_on_only_where_asked_for():
    product = torch.ones(2, 2)
    with select_device("cpu", "bf16").autocast():
        assert (product @ product).dtype == torch.bfloat16
    with select_device("cpu", "fp32").autocast():
        assert (product @ product).dtype == torch.float32


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match="--compile needs a C"):
        select_device("cpu", compiled=True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _warn_of_waste.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)


@pytest.mark.usefixtures("no_gpu")
def test_gpus_that_slurm_gave_and_torch_does_not_see_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    select_device("cpu")
    assert caplog.messages == []
    for _ in range(2):
        assert select_device().device.type in ("cpu", "mps")
    assert caplog.messages == [
        "SLURM gave this job GPUs (SLURM_JOB_GPUS=0,1) and torch sees none, so all is computed on "
        "the CPU: this torch is built for CPUs; install one built for CUDA; wsi-idc doctor says "
        "more, and --device cpu says that no GPU is wanted"
    ]


@pytest.mark.usefixtures("no_gpu")
def test_without_gpus_asked_for_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    select_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert select_device().device.type == "cuda"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ({"SLURM_JOB_ID": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_GPUS": "2,3"}, "SLURM_STEP_GPUS=2,3"),
        ({"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "2"}, "SLURM_GPUS_ON_NODE=2"),
        ({"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "0"}, None),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_what_slurm_says(monkeypatch: pytest.MonkeyPatch, said: dict[str, str], given: str | None):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert slurm_gpus() == given
