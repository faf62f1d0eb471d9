"""Bring patches to the device and results back while the device computes.

On a GPU both go through pinned memory: patches on a stream of their own, results behind what
computed them. Nobody waits but who needs a result, and only for that one. On a CPU there is
nothing to bring.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor that is on its way to the device.

    Attributes:
        tensor: On the device; what is in it may be still to come.
        event: Happens when it is there; None where it is there already.
    """

    tensor: Tensor
    event: torch.cuda.Event | None = None

    def get(self) -> Tensor:
        """Return the tensor for use on the present stream, which waits for it; nobody else does."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.event)
            # Made on another stream, its memory must not be given away while this one uses it.
            self.tensor.record_stream(stream)
        return self.tensor


@dataclass(frozen=True)
class PendingResult:
    """Tensors that are on their way to the host."""

    tensors: Sequence[Tensor]
    event: torch.cuda.Event | None = None

    def arrays(self) -> list[NDArray[np.float32]]:
        """Wait for them, if need be, and return them as arrays."""
        if self.event is not None:
            self.event.synchronize()
        return [tensor.numpy() for tensor in self.tensors]


class DeviceTransfer:
    """The way to a device and back.

    Args:
        device: Where the network is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, array: NDArray) -> DeviceTensor:
        """Send an array; any thread may. It must not be changed afterwards."""
        tensor = torch.from_numpy(array)
        if self._stream is None:
            return DeviceTensor(tensor.to(self.device))
        with torch.cuda.stream(self._stream):
            sent = tensor.pin_memory().to(self.device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return DeviceTensor(sent, event)

    def fetch(self, tensors: Sequence[Tensor]) -> PendingResult:
        """Fetch what the present stream computes."""
        if self._stream is None:
            return PendingResult([tensor.cpu() for tensor in tensors])
        here = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in tensors
        ]
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return PendingResult(here, event)
