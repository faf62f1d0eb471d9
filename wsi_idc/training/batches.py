"""The batches of an epoch: which patches, in which order, how augmented, read ahead of their use.

Everything is drawn for a whole batch from the seed and the place in the training alone, and each
process takes its part: so neither a stop nor the number of devices changes what is drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from wsi_idc.data.augmentation import Draws, draw, draw_mixup
from wsi_idc.data.pack import Pack
from wsi_idc.runtime.distributed import World
from wsi_idc.runtime.prefetch import one_ahead
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.loss import Labels, inverse_frequency
from wsi_idc.training.patch_source import PatchSource

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
    draws: Draws
    others: tuple[Tensor, Draws] | None
    labels: Labels
    all_labels: Labels
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

    return one_ahead(read, range(first_step, num_steps))


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
    draws = draw(config.augment, len(rows), generator=generator)
    part = world.part(len(rows))

    labels, others = Labels(torch.from_numpy(label)), None
    if config.mixup:
        partner, share = draw_mixup(len(rows), alpha=config.mixup, generator=generator)
        labels = Labels(labels.label, labels.label[partner], share)
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
