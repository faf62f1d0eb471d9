from dataclasses import replace

import numpy as np
import pytest
import torch

from wsi_idc.data.augmentation import augment
from wsi_idc.data.pack import Pack
from wsi_idc.models.classifier import to_images
from wsi_idc.runtime.distributed import SINGLE_PROCESS, World
from wsi_idc.training.batches import Batch, PatchSource, epoch_order, read_batches
from wsi_idc.training.config import TrainConfig

CONFIG = TrainConfig(batch_size=10, augment="strong", mixup=0.4, cutmix=0.5, seed=3)


def read(
    pack: Pack, config: TrainConfig = CONFIG, *, first_step: int = 0, world: World = SINGLE_PROCESS
) -> list[Batch]:
    source = PatchSource(pack, np.arange(5, 105), torch.device("cpu"))
    return list(read_batches(config, source, epoch=2, steps=range(first_step, 4), world=world))


def augmented(batch: Batch) -> torch.Tensor:
    return augment(to_images(batch.patches), batch.params)


@pytest.mark.parametrize("imbalance", ["none", "class-weights", "focal", "oversample"])
def test_an_epoch_uses_each_patch_once_or_draws_both_classes_equally_often(imbalance: str):
    label = np.array([0] * 9000 + [1] * 1000)
    order, same, *others = (
        epoch_order(label, imbalance=imbalance, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert (order == same).all()
    assert all((order != other).any() for other in others)
    if imbalance == "oversample":
        assert len(order) == len(label)
        assert label[order].mean() == pytest.approx(0.5, abs=0.02)
    else:
        assert sorted(order) == list(range(len(label)))


def test_labels_stay_with_their_patches(cohort: Pack):
    config = replace(CONFIG, augment="none", mixup=0.0, cutmix=0.0)
    label = cohort.index["label"].to_numpy()
    for batch in read(cohort, config):
        for patch, actual in zip(batch.patches.numpy(), batch.targets.label, strict=True):
            same = (cohort.patches == patch).all(axis=(1, 2, 3))
            assert int(actual) in label[same]


def test_a_resumed_epoch_has_the_same_batches(cohort: Pack):
    complete, rest = read(cohort), read(cohort, first_step=2)
    assert (len(complete), len(rest)) == (4, 2)
    for expected, actual in zip(complete[2:], rest, strict=True):
        assert torch.equal(augmented(expected), augmented(actual))
        assert torch.equal(expected.targets.lam, actual.targets.lam)
        assert expected.seed == actual.seed


@pytest.mark.parametrize("imbalance", ["class-weights", "oversample"])
def test_processes_share_a_batch_and_its_draws(cohort: Pack, imbalance: str):
    config = replace(CONFIG, imbalance=imbalance)
    ranks = [read(cohort, config, world=World(rank, 3)) for rank in range(3)]
    for complete, *parts in zip(read(cohort, config), *ranks, strict=True):
        images = torch.cat([augmented(part) for part in parts])
        torch.testing.assert_close(images, augmented(complete))
        for name in ("label", "label_b", "lam"):
            joined = torch.cat([getattr(part.targets, name) for part in parts])
            assert torch.equal(joined, getattr(complete.targets, name))
            for part in parts:
                assert torch.equal(getattr(part.all_targets, name), getattr(complete.targets, name))
        for number in (0, 2):  # patches and weights
            joined = torch.cat([part.mixed_in[number] for part in parts])
            assert torch.equal(joined, complete.mixed_in[number])


def test_a_mixed_in_patch_has_its_own_label(cohort: Pack):
    for batch in read(cohort):
        patches, _, weight = batch.mixed_in
        for patch, label in zip(patches, batch.targets.label_b, strict=True):
            equal = (batch.patches == patch).all(dim=(1, 2, 3))
            assert int(label) in batch.targets.label[equal]
        assert torch.equal(batch.targets.lam, weight.mean(dim=(1, 2, 3)))


def test_patches_on_the_device_equal_those_of_the_pack(cohort: Pack):
    rows = np.arange(7, 107, 2)
    chosen = np.array([105, 7, 7, 51])
    expected = torch.from_numpy(cohort.patches[chosen])
    for resident in (True, False, None):
        source = PatchSource(cohort, rows, torch.device("cpu"), resident=resident)
        assert torch.equal(source.take(chosen), expected)
        assert (source._resident is not None) == bool(resident)  # None: only on a GPU
