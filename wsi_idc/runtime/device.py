"""Select the device of the network, and the precision of the computation."""

import contextlib
import functools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime.resources import keep_freed_memory, num_threads, slurm_gpus
from wsi_idc.runtime.throughput import ThroughputMeter

logger = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?")
# Flags in /proc/cpuinfo of CPUs that compute in bf16: x86 (AVX-512, AMX) and ARM.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_CPU_INFO = Path("/proc/cpuinfo")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TooLittleMemoryError(DeviceError, torch.OutOfMemoryError):
    """The device has too little memory; this class is also a ``torch.OutOfMemoryError``."""


@dataclass(frozen=True)
class DeviceConfig:
    """A device, and the precision in which the device computes the network.

    Attributes:
        device: Device of the network.
        precision: "fp32", "bf16" or "fp16".
        compiled: True if torch.compile compiles the network.
    """

    device: torch.device
    precision: str
    compiled: bool = False

    @functools.cached_property
    def throughput(self) -> "ThroughputMeter":
        """Meter of the device's throughput."""
        return ThroughputMeter(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context manager that sets the precision of the network."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def __str__(self) -> str:
        name = str(self.device)
        if self.device.type == "cuda":
            name += f" ({torch.cuda.get_device_name(self.device)})"
        if self.device.type == "cpu":
            name += f" ({torch.get_num_threads()} threads)"
        return f"{name}, {self.precision}"


def select_device(
    device: str = "auto",
    precision: str = "auto",
    *,
    compiled: bool = False,
    training: bool = False,
) -> DeviceConfig:
    """Select a device and a precision by name; "auto" means the best available one.

    The precision "auto" is bf16 on hardware that computes in bf16, else fp32.

    Args:
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        precision: One of ``PRECISIONS``.
        compiled: True to compile the network.
        training: True to train. The precision "auto" is then fp32 on a CPU: the gradients of
            depthwise convolutions take longer in bf16.

    Raises:
        DeviceError: The device, its precision or the compiler is not available.
    """
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        raise DeviceError("--compile needs a C++ compiler; install g++, or leave out --compile")
    selected = _find_device(device)
    if selected.type == "cpu":
        torch.set_num_threads(num_threads())
        keep_freed_memory()
    if precision == "auto":
        precision = "bf16" if _has_bf16(selected, training=training) else "fp32"
    if precision not in _DTYPES:
        raise DeviceError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and selected.type == "cpu":
        raise DeviceError("a CPU cannot compute in fp16; use --precision fp32 or bf16")
    if precision == "fp32":
        # By default, a GPU computes convolutions in TF32, which keeps only 10 bits of the fraction.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return DeviceConfig(selected, precision, compiled)


def _has_bf16(device: torch.device, *, training: bool) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not training and cpu_has_bf16()


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether the CPU computes in bf16; False if the system does not state it."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").lower().splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "feat")))
    return not _BF16_FLAGS.isdisjoint(next(flags, ()))


def _find_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if gpus := slurm_gpus():
            _warn_unused_gpus(gpus)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not _DEVICE.fullmatch(name):
        raise DeviceError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, ..., mps")
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("this machine has no MPS device; use --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"no {name}: torch finds {count} CUDA GPUs; use --device cpu or auto")
    return torch.device(name)


@functools.cache
def _warn_unused_gpus(gpus: str) -> None:
    if torch.version.cuda is None:
        reason = "this torch is built for CPUs; install a torch that is built for CUDA"
    else:
        reason = f"torch needs a driver for CUDA {torch.version.cuda} and access to the devices"
    logger.warning(
        "SLURM assigned GPUs to this job (%s), but torch finds no GPU and uses the CPU: %s; "
        "run wsi-idc doctor for details, or give --device cpu if the job needs no GPU",
        gpus,
        reason,
    )


@contextlib.contextmanager
def oom_as_error(workload: int | str, device: torch.device) -> Iterator[None]:
    """Context manager: turn torch.OutOfMemoryError into TooLittleMemoryError with a short message.

    Args:
        workload: Number of patches in the batch, or a text that names the work. The message has
            this number or text.
        device: Device that the message names.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        if isinstance(workload, int):
            workload = f"{workload} patches at once; give a smaller --batch-size"
        raise TooLittleMemoryError(f"{device} has too little memory for {workload}") from None
