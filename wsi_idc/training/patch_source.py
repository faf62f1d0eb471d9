"""Patches of a pack for a training: from the device's own memory where they fit into it."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_idc.data.pack import Pack

logger = logging.getLogger(__name__)

# Of the device's free memory; the rest is for the network.
_SHARE = 0.4
_PATCHES_A_COPY = 4096


class PatchSource:
    """Gives patches by their rows in a pack, as a tensor on the device or on its way there.

    Args:
        pack: The data.
        rows: All that will be asked for.
        device: Where the network is.
        resident: Whether all of them are put on the device now; None: on a GPU, if they fit.
    """

    def __init__(
        self,
        pack: Pack,
        rows: NDArray[np.int64],
        device: torch.device,
        *,
        resident: bool | None = None,
    ) -> None:
        self._pack, self._device = pack, device
        self._all: Tensor | None = None
        if _fits(pack, len(rows), device) if resident is None else resident:
            self._place = np.full(len(pack), -1)
            self._place[rows] = np.arange(len(rows))
            self._all = _upload(pack, rows, device)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return patches, shape (n, H, W, 3), uint8; any thread may ask."""
        if self._all is not None:
            return self._all[self._sent(torch.from_numpy(self._place[rows]))]
        return self._pinned(torch.from_numpy(self._pack.patches[rows]))

    def _sent(self, places: Tensor) -> Tensor:
        return self._pinned(places).to(self._device, non_blocking=True)

    def _pinned(self, tensor: Tensor) -> Tensor:
        """Put a tensor where a GPU fetches it fastest."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


def _fits(pack: Pack, num: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return num * pack.patches[0].nbytes <= _SHARE * free


def _upload(pack: Pack, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    room = torch.empty((len(rows), *pack.patches.shape[1:]), dtype=torch.uint8, device=device)
    for at in range(0, len(rows), _PATCHES_A_COPY):
        part = rows[at : at + _PATCHES_A_COPY]
        room[at : at + len(part)] = torch.from_numpy(pack.patches[part])
    logger.info("%d patches lie on %s", len(rows), device)
    return room
