"""The batches of an epoch: which patches, in which order, how augmented, read ahead of their use.

Everything is drawn for a whole batch from the seed and the place in the training alone, and each
process takes its part: so neither a stop nor the number of devices changes what is drawn.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from wsi_idc.data.augmentation import AugmentParams, sample_mixup, sample_params
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.distributed import World
from wsi_idc.runtime.prefetch import prefetch_one
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Targets, inverse_frequency

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


# What a draw is for comes first: numpy pads seeds by zeros, so [1, 2] and [1, 2, 0] are one.
_ORDER, _STEP = 0, 1


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch.

    Attributes:
        patches: Shape (n, H, W, 3), uint8.
        draws: How each is augmented.
        others: The patches to blend in, and how those are augmented; None without mixup.
        labels: Of the n patches.
        all_labels: Of the whole batch.
        seed: For what the network itself draws.
    """

    patches: Tensor
    draws: AugmentParams
    others: tuple[Tensor, AugmentParams] | None
    labels: Targets
    all_labels: Targets
    seed: int

    def __len__(self) -> int:
        return len(self.patches)


def epoch_order(
    label: NDArray[np.integer], *, imbalance: str, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return positions in ``label`` in the order in which an epoch takes them."""
    rng = np.random.default_rng([_ORDER, seed, epoch])
    if imbalance != "oversample":
        return rng.permutation(len(label))
    weights = inverse_frequency(label)[label]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    sampler = WeightedRandomSampler(weights.tolist(), len(label), generator=generator)
    return np.fromiter(sampler, np.int64, len(label))


def batches(
    config: TrainConfig,
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    epoch: int,
    first_step: int,
    num_steps: int,
    world: World,
    source: PatchSource,
) -> Iterator[Batch]:
    """Yield the batches of an epoch from ``first_step`` on, the next one read meanwhile.

    Args:
        config: Batch size, seed, imbalance, augmentation, mixup.
        pack: The data.
        rows: Of the train patches in it.
        epoch: Counted from 0.
        first_step: Counted from 0.
        num_steps: Of an epoch.
        world: The processes that share each batch.
        source: Of the patches.
    """
    label = pack.index["label"].to_numpy().astype(np.int64)
    order = rows[
        epoch_order(label[rows], imbalance=config.imbalance, seed=config.seed, epoch=epoch)
    ]

    def read(step: int) -> Batch:
        chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
        return _read(config, source, chosen, label[chosen], [epoch, step], world=world)

    return prefetch_one(read, range(first_step, num_steps))


def _read(
    config: TrainConfig,
    source: PatchSource,
    rows: NDArray[np.int64],
    label: NDArray[np.int64],
    place: list[int],
    *,
    world: World,
) -> Batch:
    seed = int(np.random.default_rng([_STEP, config.seed, *place]).integers(2**62))
    generator = torch.Generator().manual_seed(seed)
    draws = sample_params(config.augment, len(rows), generator=generator)
    part = world.part(len(rows))

    labels, others = Targets(torch.from_numpy(label)), None
    if config.mixup:
        partner, share = sample_mixup(len(rows), alpha=config.mixup, generator=generator)
        labels = Targets(labels.label, labels.label[partner], share)
        chosen = partner[part].numpy()
        others = source.take(rows[chosen]), draws.take(chosen)
    return Batch(
        patches=source.take(rows[part]),
        draws=draws.take(part),
        others=others,
        labels=labels.take(part),
        all_labels=labels,
        seed=seed,
    )
