import torch

from wsi_idc.data.augment import NUM_DIHEDRAL, dihedral, random_dihedral


def batch(count: int) -> torch.Tensor:
    return torch.arange(count * 4 * 4 * 3, dtype=torch.int32).reshape(count, 4, 4, 3)


def test_the_eight_elements_are_distinct_and_closed_under_composition():
    patch = batch(1)
    views = [dihedral(patch, element) for element in range(NUM_DIHEDRAL)]
    assert len({tuple(view.flatten().tolist()) for view in views}) == NUM_DIHEDRAL
    for view in views:
        for element in range(NUM_DIHEDRAL):
            twice = dihedral(view, element)
            assert sum(torch.equal(twice, other) for other in views) == 1


def test_the_first_element_changes_nothing_and_the_fourth_mirrors_columns():
    patch = batch(1)
    assert torch.equal(dihedral(patch, 0), patch)
    assert torch.equal(dihedral(patch, 4)[0, :, 0], patch[0, :, 3])


def test_each_patch_has_its_own_draw_and_the_seed_decides():
    patches = batch(1).expand(64, 4, 4, 3).contiguous()
    first = random_dihedral(patches, generator=torch.Generator().manual_seed(5))
    again = random_dihedral(patches, generator=torch.Generator().manual_seed(5))
    other = random_dihedral(patches, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(view.flatten().tolist()) for view in first}) == NUM_DIHEDRAL


def test_every_result_is_a_view_of_its_own_patch():
    patches = batch(32)
    result = random_dihedral(patches, generator=torch.Generator().manual_seed(0))
    for patch, view in zip(patches, result, strict=True):
        assert any(
            torch.equal(dihedral(patch[None], element)[0], view) for element in range(NUM_DIHEDRAL)
        )
