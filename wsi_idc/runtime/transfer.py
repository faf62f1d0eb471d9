"""Asynchronous copies of patches to the device, and of results from the device.

Copies to and from a GPU use pinned memory and run while the GPU computes. Patches are copied on a
separate CUDA stream. A result is copied on the CUDA stream that computed the result. Code that
reads a result waits for this result only. On a CPU, nothing is copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the device; ``event`` marks the end of its copy. None means no waiting."""

    tensor: Tensor
    event: torch.cuda.Event | None = None

    def get(self) -> Tensor:
        """Return the tensor for use on the current stream; only that stream waits for the copy."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.event)
            # The tensor was allocated on another stream. Its memory must not be reused before the
            # current stream has used the tensor.
            self.tensor.record_stream(stream)
        return self.tensor


@dataclass(frozen=True)
class PendingResult:
    """Tensors that are being copied from the device to the CPU.

    ``event`` marks the end of the copies. None means no waiting.
    """

    tensors: Sequence[Tensor]
    event: torch.cuda.Event | None = None

    def arrays(self) -> list[NDArray[np.float32]]:
        """Wait until the copies end, and return the tensors as arrays."""
        if self.event is not None:
            self.event.synchronize()
        return [tensor.numpy() for tensor in self.tensors]


class DeviceTransfer:
    """Object that copies arrays to a device, and tensors from the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def upload(self, array: NDArray) -> DeviceTensor:
        """Start to copy an array to the device; any thread may call this method.

        Do not change the array later, because a tensor on the CPU uses the memory of the array.
        """
        tensor = torch.from_numpy(array)
        if self._stream is None:
            return DeviceTensor(tensor.to(self.device))
        with torch.cuda.stream(self._stream):
            copy = tensor.pin_memory().to(self.device, non_blocking=True)
            return DeviceTensor(copy, self._stream.record_event())

    def download(self, tensors: Sequence[Tensor]) -> PendingResult:
        """Start to copy tensors from the device.

        On a GPU, call this method on the CUDA stream that computes the tensors.
        """
        if self._stream is None:
            return PendingResult([tensor.cpu() for tensor in tensors])
        copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in tensors
        ]
        return PendingResult(copies, torch.cuda.current_stream(self.device).record_event())
