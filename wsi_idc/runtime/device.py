"""Which device computes, and in which precision."""

import contextlib
import functools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from wsi_idc.core.errors import DeviceError
from wsi_idc.runtime.resources import keep_freed_memory, num_threads, slurm_gpus
from wsi_idc.runtime.throughput import ThroughputMeter

logger = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TooLittleMemoryError(DeviceError, torch.OutOfMemoryError):
    """A device has too little memory; also torch's own error, for those that have an answer."""


@dataclass(frozen=True)
class DeviceConfig:
    """A device and the precision that the network runs in on it.

    Attributes:
        device: Where the network is.
        precision: "fp32", "bf16" or "fp16".
        compiled: Whether the network goes through torch.compile.
        usage: How the device is used.
    """

    device: torch.device
    precision: str
    compiled: bool = False
    usage: ThroughputMeter = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "usage", ThroughputMeter(self.device))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which to run the network."""
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
    device: str = "auto", precision: str = "auto", *, compiled: bool = False
) -> DeviceConfig:
    """Return the device and precision asked for, "auto" resolved to the best there is.

    Raises:
        DeviceError: This machine has no such device, it cannot compute in that precision, or
            nothing can be compiled here.
    """
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        raise DeviceError("--compile needs a C++ compiler; install g++, or go without it")
    chosen = _choose_device(device)
    if chosen.type == "cpu":
        torch.set_num_threads(num_threads())
        keep_freed_memory()
    if precision == "auto":
        good = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if good else "fp32"
    if precision not in _DTYPES:
        raise DeviceError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and chosen.type == "cpu":
        raise DeviceError("fp16 is no precision for a CPU; use --precision fp32 or bf16")
    if precision == "fp32":
        # Else convolutions on a GPU round to TF32's 10 bits.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return DeviceConfig(chosen, precision, compiled)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if given := slurm_gpus():
            _warn_of_waste(given)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not _DEVICE.fullmatch(name):
        raise DeviceError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, ..., mps")
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no MPS device here; use --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise DeviceError(f"device {name}: torch sees {there} CUDA GPUs; use --device cpu or auto")
    return torch.device(name)


@functools.cache
def _warn_of_waste(given: str) -> None:
    """Say, once, that GPUs lie idle that were asked for and that others wait for."""
    if torch.version.cuda is None:
        why = "this torch is built for CPUs; install one built for CUDA"
    else:
        why = f"torch needs a driver for CUDA {torch.version.cuda} and devices it may open"
    logger.warning(
        "SLURM gave this job GPUs (%s) and torch sees none, so all is computed on the CPU: %s; "
        "wsi-idc doctor says more, and --device cpu says that no GPU is wanted",
        given,
        why,
    )


@contextlib.contextmanager
def oom_as_error(what: int | str, device: torch.device) -> Iterator[None]:
    """Turn a device's lack of memory for some patches, or something else, into one line.

    Raises:
        TooLittleMemoryError: There is too little.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        if isinstance(what, int):
            what = f"{what} patches at once; give a smaller --batch-size"
        raise TooLittleMemoryError(f"{device} has too little memory for {what}") from None
