"""Batches of an epoch: random order, augmentation, mixup; a thread reads the next batch.

The random numbers of a batch depend only on the seed, the epoch and the step. These numbers do not
change if a training is stopped and resumed, or if the number of processes changes.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_idc.data.augmentation import AugmentParams, sample_mixing, sample_params
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.distributed import World
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Targets, inverse_frequency

logger = logging.getLogger(__name__)
# Largest fraction of the device's free memory that patches may use; the network needs the rest.
_MEMORY_FRACTION = 0.4
_PATCHES_PER_COPY = 4096
# First number of the seeds for the order and for a step. Without this number, two seeds of
# different length may be equal, because numpy pads seeds with zeros: [1, 2] equals [1, 2, 0].
_ORDER, _STEP = 0, 1


class PatchSource:
    """Source of patches: a copy of all patches on the device, or the file of the pack.

    Args:
        pack: Pack that contains the patches.
        rows: Indices in the pack of all patches that will be read, shape (N,).
        device: Device of the network.
        resident: Whether to copy all patches to the device; None: copy them if the device is a GPU
            with enough memory.
    """

    def __init__(
        self,
        pack: Pack,
        rows: NDArray[np.int64],
        device: torch.device,
        *,
        resident: bool | None = None,
    ) -> None:
        self.pack, self.rows, self._device = pack, rows, device
        self._resident: Tensor | None = None
        if resident is None and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            resident = len(rows) * pack.patches[0].nbytes <= _MEMORY_FRACTION * free
        if not resident:
            return
        self._position = np.full(len(pack), -1)
        self._position[rows] = np.arange(len(rows))
        shape = (len(rows), *pack.patches.shape[1:])
        self._resident = torch.empty(shape, dtype=torch.uint8, device=device)
        for start in range(0, len(rows), _PATCHES_PER_COPY):
            part = slice(start, start + _PATCHES_PER_COPY)
            self._resident[part] = torch.from_numpy(pack.patches[rows[part]])
        logger.info("%d patches copied to %s", len(rows), device)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return patches of the pack, shape (n, H, W, 3), uint8.

        Any thread may call this method.
        """
        if self._resident is None:
            return self._pinned(torch.from_numpy(self.pack.patches[rows]))
        positions = self._pinned(torch.from_numpy(self._position[rows]))
        return self._resident[positions.to(self._device, non_blocking=True)]

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


@dataclass(frozen=True)
class Batch:
    """The part of a batch that one process computes.

    Attributes:
        patches: Patches of this part, shape (n, H, W, 3), uint8.
        params: Parameters of the augmentation of each patch.
        mixed_in: Partner patches for mixup and CutMix, the parameters of the augmentation of these
            patches, and the weight of each px of ``patches``; None without mixup and CutMix.
        targets: Targets of ``patches``.
        all_targets: Targets of the complete batch, including the parts of other processes.
        seed: Seed of random numbers inside the network, such as dropout.
    """

    patches: Tensor
    params: AugmentParams
    mixed_in: tuple[Tensor, AugmentParams, Tensor] | None
    targets: Targets
    all_targets: Targets
    seed: int


def epoch_order(
    label: NDArray[np.integer], *, imbalance: str, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the indices of the patches in the random order of an epoch, shape (N,).

    If ``imbalance`` is "oversample", an index can occur several times, and both classes occur
    about equally often. ``label`` is the label of each patch.
    """
    rng = np.random.default_rng([_ORDER, seed, epoch])
    if imbalance != "oversample":
        return rng.permutation(len(label))
    weights = torch.from_numpy(inverse_frequency(label)[label])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return weights.multinomial(len(label), replacement=True, generator=generator).numpy()


def read_batches(
    config: TrainConfig, source: PatchSource, *, epoch: int, steps: range, world: World
) -> Iterator[Batch]:
    """Yield this process's part of each batch; the next batch is read in the background.

    Args:
        config: Settings: batch size, seed, imbalance, augmentation, mixup and CutMix.
        source: Source that reads the train patches.
        epoch: Number of the epoch, counted from 0.
        steps: Numbers of the batches to read, counted from 0 in each epoch.
        world: Processes that share each batch.
    """
    rows, label = source.rows, source.pack.index["label"].to_numpy().astype(np.int64)
    order = epoch_order(label[rows], imbalance=config.imbalance, seed=config.seed, epoch=epoch)

    def read(step: int) -> Batch:
        chosen = rows[order[step * config.batch_size : (step + 1) * config.batch_size]]
        rng = np.random.default_rng([_STEP, config.seed, epoch, step])
        seed = int(rng.integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        params = sample_params(config.augment, len(chosen), generator=generator)
        part = world.shard(len(chosen))
        targets, mixed_in = Targets(torch.from_numpy(label[chosen])), None
        if config.mixup or config.cutmix:
            partner, weight = sample_mixing(
                *(len(chosen), source.pack.info.patch_px),
                mixup=config.mixup,
                cutmix=config.cutmix,
                generator=generator,
            )
            targets = Targets(targets.label, targets.label[partner], weight.mean(dim=(1, 2, 3)))
            partner_rows = partner[part].numpy()
            others = source.take(chosen[partner_rows]), params.take(partner_rows)
            mixed_in = (*others, weight[part])
        patches = source.take(chosen[part])
        return Batch(patches, params.take(part), mixed_in, targets.take(part), targets, seed)

    return prefetch(read, steps)
