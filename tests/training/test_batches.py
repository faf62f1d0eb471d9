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

CONFIG = TrainConfig(batch_size=10, augment="strong", mixup=0.4, seed=3)
LABEL = np.array([0] * 90 + [1] * 10)


def read(
    pack: Pack, config: TrainConfig = CONFIG, *, first_step: int = 0, world: World = SINGLE_PROCESS
) -> list[Batch]:
    rows = np.arange(5, 105)
    source = PatchSource(pack, rows, torch.device("cpu"))
    coming = read_batches(
        config,
        pack,
        rows,
        epoch=2,
        steps=range(first_step, 4),
        world=world,
        source=source,
    )
    return list(coming)


def shown(batch: Batch) -> torch.Tensor:
    return augment(to_images(batch.patches), batch.params)


@pytest.mark.parametrize("imbalance", ["none", "class-weights", "focal"])
def test_an_epoch_takes_each_patch_once(imbalance: str):
    order = epoch_order(LABEL, imbalance=imbalance, seed=0, epoch=0)
    assert sorted(order) == list(range(100))
    assert (order != epoch_order(LABEL, imbalance=imbalance, seed=0, epoch=1)).any()
    assert (order != epoch_order(LABEL, imbalance=imbalance, seed=1, epoch=0)).any()


def test_oversampling_draws_both_classes_equally_often():
    label = np.array([0] * 9000 + [1] * 1000)
    order = epoch_order(label, imbalance="oversample", seed=0, epoch=0)
    assert len(order) == len(label)
    assert label[order].mean() == pytest.approx(0.5, abs=0.02)
    assert (order == epoch_order(label, imbalance="oversample", seed=0, epoch=0)).all()
    assert (order != epoch_order(label, imbalance="oversample", seed=0, epoch=1)).any()


def test_labels_stay_with_their_patches(cohort: Pack):
    config = replace(CONFIG, augment="none", mixup=0.0)
    label = cohort.index["label"].to_numpy()
    for batch in read(cohort, config):
        for patch, found in zip(batch.patches.numpy(), batch.targets.label, strict=True):
            same = (cohort.patches == patch).all(axis=(1, 2, 3))
            assert int(found) in label[same]


def test_a_stopped_epoch_goes_on_with_the_same_batches(cohort: Pack):
    whole, rest = read(cohort), read(cohort, first_step=2)
    assert len(whole) == 4
    assert len(rest) == 2
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(shown(one), shown(other))
        assert torch.equal(one.targets.lam, other.targets.lam)
        assert one.seed == other.seed


def test_processes_share_a_batch_and_its_draws(cohort: Pack):
    parts = [read(cohort, world=World(rank, 3)) for rank in range(3)]
    for whole, *shares in zip(read(cohort), *parts, strict=True):
        torch.testing.assert_close(torch.cat([shown(share) for share in shares]), shown(whole))
        for name in ("label", "label_b", "lam"):
            joined = torch.cat([getattr(share.targets, name) for share in shares])
            assert torch.equal(joined, getattr(whole.targets, name))
            for share in shares:
                assert torch.equal(getattr(share.all_targets, name), getattr(whole.targets, name))
        others = torch.cat([share.mixed_in[0] for share in shares])
        assert torch.equal(others, whole.mixed_in[0])


def test_processes_oversample_the_same_patches(cohort: Pack):
    config = replace(CONFIG, imbalance="oversample", mixup=0.0)
    parts = [read(cohort, config, world=World(rank, 2)) for rank in range(2)]
    for whole, one, two in zip(read(cohort, config), *parts, strict=True):
        assert torch.equal(torch.cat([one.patches, two.patches]), whole.patches)


def test_a_blended_patch_comes_with_the_other_ones_label(cohort: Pack):
    for batch in read(cohort):
        patches, _ = batch.mixed_in
        for patch, label in zip(patches, batch.targets.label_b, strict=True):
            at = [i for i, own in enumerate(batch.patches) if torch.equal(own, patch)]
            assert int(label) in batch.targets.label[at]
        assert (batch.targets.lam >= 0.5).all()


def test_what_lies_on_the_device_is_what_is_in_the_pack(cohort: Pack):
    rows = np.arange(7, 107, 2)
    asked = np.array([105, 7, 7, 51])
    expected = torch.from_numpy(cohort.patches[asked])
    for resident in (True, False, None):
        source = PatchSource(cohort, rows, torch.device("cpu"), resident=resident)
        assert torch.equal(source.take(asked), expected)


def test_a_cpu_keeps_no_second_copy(cohort: Pack):
    assert PatchSource(cohort, np.arange(5), torch.device("cpu"))._resident is None
