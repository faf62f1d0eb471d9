import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from wsi_idc.data.augmentation import (
    AUGMENTATIONS,
    NUM_DIHEDRAL,
    AugmentParams,
    augment,
    dihedral,
    mix,
    sample_mixing,
    sample_params,
)

SIDE = 10
WHOLE_BATCH = 24


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num: int = WHOLE_BATCH, *, side: int = SIDE) -> torch.Tensor:
    """Return coloured noise as training has it: a permuted view of (N, H, W, 3) uint8."""
    stored = torch.randint(256, (num, side, side, 3), dtype=torch.uint8, generator=seeded(9))
    return stored.permute(0, 3, 1, 2).float() / 255


def still(num: int, **changes: torch.Tensor) -> AugmentParams:
    """Return params that change nothing, but for ``changes``."""
    parts = vars(sample_params("none", num, generator=seeded())) | changes
    return AugmentParams(**parts)


def all_views(image: torch.Tensor) -> torch.Tensor:
    """Return the 8 views of one image (1, C, H, H)."""
    return dihedral(image.expand(NUM_DIHEDRAL, -1, -1, -1), torch.arange(NUM_DIHEDRAL))


def test_the_eight_elements_are_quarter_turns_of_the_image_and_its_mirror_and_form_a_group():
    image = torch.arange(48).view(1, 3, 4, 4)
    views = all_views(image)
    for element, view in enumerate(views):
        start = image[0].flip(2) if element >= 4 else image[0]
        assert torch.equal(view, torch.rot90(start, element % 4, dims=(1, 2)))
    assert len({tuple(view.flatten().tolist()) for view in views}) == NUM_DIHEDRAL
    table = [
        [next(k for k in range(NUM_DIHEDRAL) if torch.equal(twice, views[k])) for twice in row]
        for row in (all_views(view[None]) for view in views)
    ]
    # Rows and columns of a group's table hold each element once: so each has its inverse.
    for line in (*table, *zip(*table, strict=True)):
        assert sorted(line) == list(range(NUM_DIHEDRAL))
    assert table[0] == [row[0] for row in table] == list(range(NUM_DIHEDRAL))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_image_gets_its_own_element_in_its_own_place(memory_format, dtype):
    batch = (images() * 255).to(dtype).contiguous(memory_format=memory_format)
    element = torch.arange(WHOLE_BATCH) % NUM_DIHEDRAL
    result = dihedral(batch, element)
    assert result.dtype == dtype
    for image, view, k in zip(batch, result, element, strict=True):
        assert torch.equal(dihedral(image[None], k[None])[0], view)


@pytest.mark.parametrize("name", ["light", "strong"])
def test_the_seed_decides_and_every_image_differs(name):
    batch = images(1).expand(WHOLE_BATCH, -1, -1, -1)
    first, again, other = (
        augment(batch, sample_params(name, WHOLE_BATCH, generator=seeded(seed)))
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(image.flatten().tolist()) for image in first}) == WHOLE_BATCH


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_batch_in_parts_is_the_whole_batch(name):
    batch, params = images(), sample_params(name, WHOLE_BATCH, generator=seeded(1))
    whole = augment(batch, params)
    assert (whole is batch) == (name == "none")
    for rows in (slice(0, 7), slice(7, 24), torch.tensor([3]), np.array([23, 0, 5])):
        part = augment(batch[rows], params.take(rows))
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_range_type_and_memory_stay_and_the_input_is_not_touched(name):
    batch = images()
    batch[:4], batch[4:8] = 0, 1
    before = batch.clone()
    params = sample_params(name, WHOLE_BATCH, generator=seeded())
    result = augment(batch, params)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(batch, params), result)
    assert torch.equal(batch, before)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= result.min() <= result.max() <= 1
    augment(batch, still(WHOLE_BATCH, angle=torch.ones(WHOLE_BATCH)))
    assert torch.equal(batch, before)


@pytest.mark.parametrize("turns", [-2, -1, 1, 2])
def test_a_free_turn_by_right_angles_is_rot90(turns):
    batch = images(3)
    result = augment(batch, still(3, angle=torch.full((3,), turns * math.pi / 2)))
    torch.testing.assert_close(result, torch.rot90(batch, turns, (2, 3)), atol=1e-5, rtol=0)


def test_a_turn_leaves_no_corner_empty_and_other_images_alone():
    batch = images(20)
    batch[:10] = 1
    batch[10:19] = torch.tensor([0.8, 0.5, 0.7])[:, None, None]
    angle = torch.linspace(-3, 3, 20)
    angle[19] = 0
    result = augment(batch, still(20, angle=angle))
    torch.testing.assert_close(result[:19], batch[:19], atol=1e-6, rtol=0)
    assert torch.equal(result[19], batch[19])


def test_a_turn_there_and_back_keeps_the_middle_of_a_smooth_image():
    ramp = torch.linspace(0.2, 0.8, 50)
    batch = torch.stack([ramp.expand(50, 50), ramp[:, None].expand(50, 50), ramp.expand(50, 50)])
    there = augment(batch[None], still(1, angle=torch.tensor([0.4])))
    back = augment(there, still(1, angle=torch.tensor([-0.4])))
    middle = (..., slice(15, 35), slice(15, 35))
    torch.testing.assert_close(back[0][middle], batch[middle], atol=1e-4, rtol=0)
    assert (there[0][middle] - batch[middle]).abs().max() > 0.05


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_in_torchvision(name):
    batch = images()
    factors = torch.linspace(0.5, 1.5, WHOLE_BATCH)
    result = augment(batch, still(WHOLE_BATCH, **{name: factors}))
    adjust = getattr(tv, f"adjust_{name}")
    expected = [adjust(image, float(k)) for image, k in zip(batch, factors, strict=True)]
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-5, rtol=0)


def test_several_changes_of_colour_are_torchvisions_in_a_row():
    batch = 0.4 + images() / 5  # nothing to clamp on the way
    factors = {"brightness": 1.2, "contrast": 0.8, "saturation": 1.3}
    expected = batch
    for name, factor in factors.items():
        expected = getattr(tv, f"adjust_{name}")(expected, factor)
    params = still(WHOLE_BATCH, **{k: torch.full((WHOLE_BATCH,), v) for k, v in factors.items()})
    torch.testing.assert_close(augment(batch, params), expected, atol=1e-5, rtol=0)


def test_hue_turns_red_to_green_keeps_luma_and_greys():
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 0.5
    turned = augment(red, still(1, hue=torch.tensor([1 / 3]))).flatten()
    assert turned.argmax() == 1
    batch = 0.4 + images() / 5
    result = augment(batch, still(WHOLE_BATCH, hue=torch.linspace(-0.1, 0.1, WHOLE_BATCH)))
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((result * luma).sum(1), (batch * luma).sum(1), atol=1e-5, rtol=0)
    grey = torch.full((1, 3, 2, 2), 0.6)
    torch.testing.assert_close(augment(grey, still(1, hue=torch.tensor([0.2]))), grey)


def test_separating_and_mixing_stains_changes_nothing():
    batch = images()
    batch[0, :, :2] = 0
    scale = torch.ones(WHOLE_BATCH, 3)
    scale[0, 0] += 2**-23  # else the stains would not be taken apart at all
    result = augment(batch, still(WHOLE_BATCH, stain_scale=scale))
    assert result is not batch
    torch.testing.assert_close(result, batch, atol=1e-4, rtol=0)


def test_stain_by_definition():
    # One pixel of pure eosin at optical density 0.5, one of glass.
    eosin = torch.tensor([0.07, 0.99, 0.11])
    batch = torch.stack([torch.exp(-0.5 * eosin), torch.ones(3)], dim=1).view(1, 3, 1, 2)
    batch = batch.expand(2, 3, 1, 2)
    scale, shift = torch.ones(2, 3), torch.zeros(2, 3)
    scale[0, 1], shift[1, 1] = 1.4, 0.1
    scale[0, 0] = 0.3  # there is no haematoxylin to change
    result = augment(batch, still(2, stain_scale=scale, stain_shift=shift))
    amounts = torch.tensor([[0.7, 0.0], [0.6, 0.1]])
    expected = torch.exp(-amounts[:, None, :] * eosin[:, None])
    torch.testing.assert_close(result.flatten(2), expected, atol=1e-5, rtol=0)


def test_strong_parameters_are_within_their_bounds_and_use_them():
    params = sample_params("strong", 4000, generator=seeded())
    for values, middle, half_width in (
        (params.brightness, 1, 0.2),
        (params.contrast, 1, 0.25),
        (params.saturation, 1, 0.25),
        (params.hue, 0, 0.02),
        (params.angle, 0, math.pi),
    ):
        assert 0.98 * half_width < (values - middle).abs().max() <= half_width * (1 + 1e-6)
    assert float((params.angle != 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert params.dihedral_index.bincount().min() > 400
    correlation = np.corrcoef(params.stain_scale.T.numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.1


def test_glass_stays_nearly_white():
    glass = torch.full((500, 3, 1, 1), 0.95)
    params = sample_params("strong", 500, generator=seeded())
    glass_params = still(500, stain_scale=params.stain_scale, stain_shift=params.stain_shift)
    assert (augment(glass, glass_params) - glass).abs().max() < 0.06


def sample(
    *, num: int = 1000, seed: int = 3, **fractions: float
) -> tuple[torch.Tensor, torch.Tensor]:
    fractions = {"mixup": 0.0, "cutmix": 0.0} | fractions
    return sample_mixing(num, 50, generator=seeded(seed), **fractions)


def test_mixup_has_one_weight_for_a_patch():
    partner, weight = sample(mixup=0.4)
    again = sample(mixup=0.4)
    assert torch.equal(partner, again[0])
    assert torch.equal(weight, again[1])
    assert not torch.equal(weight, sample(mixup=0.4, seed=4)[1])
    assert partner.sort().values.tolist() == list(range(1000))
    assert (weight.dtype, weight.shape) == (torch.float32, (1000, 1, 1, 1))
    assert weight.min() >= 0.5
    assert weight.max() <= 1
    # Folding leaves the variance around a half: 1 / (4 (2 alpha + 1)) for a Beta(alpha, alpha).
    assert float((weight - 0.5).square().mean()) == pytest.approx(1 / 7.2, rel=0.1)


def test_cutmix_cuts_a_rectangle():
    _, weight = sample(cutmix=1)
    assert weight.shape == (1000, 1, 50, 50)
    assert weight.unique().tolist() == [0, 1]
    is_cut = weight[:, 0] == 0
    for cut in is_cut:
        rows, cols = cut.any(1), cut.any(0)
        assert torch.equal(cut, rows[:, None] & cols)
        for line in (rows, cols):  # a side has no gap
            assert line.int().diff().abs().sum() <= 2
    # The area is uniform, but the part outside the patch is cut off.
    expected = float((1 - np.sqrt(np.linspace(0, 1, 1001)) / 4) ** 2 @ np.linspace(0, 1, 1001))
    assert float(is_cut.float().mean()) == pytest.approx(expected / 1001, abs=0.02)


def test_a_fraction_of_the_patches_uses_cutmix_and_the_others_mixup():
    _, weight = sample(mixup=0.4, cutmix=0.25)
    is_uniform = (weight == weight[:, :, :1, :1]).all(dim=(1, 2, 3))
    assert float(is_uniform.float().mean()) == pytest.approx(0.75, abs=0.05)
    assert torch.equal(weight[is_uniform][:, :, 0, 0], sample(mixup=0.4)[1][is_uniform][:, :, 0, 0])


def test_mix_weighs_the_px_of_the_first():
    first, second = torch.full((3, 3, 2, 2), 0.8), torch.full((3, 3, 2, 2), 0.4)
    result = mix(first, second, torch.tensor([1.0, 0.75, 0.5]).view(3, 1, 1, 1))
    torch.testing.assert_close(result[:, 0, 0, 0], torch.tensor([0.8, 0.7, 0.6]))
    assert torch.equal(result[0], first[0])
    halves = torch.tensor([[1.0, 0.0]]).expand(3, 1, 2, 2)
    torch.testing.assert_close(mix(first, second, halves)[1, 2, 1], torch.tensor([0.8, 0.4]))
