"""Augmentation of whole batches on the device, each patch with a draw of its own."""

import torch
from torch import Tensor

NUM_DIHEDRAL = 8


def dihedral(patches: Tensor, element: int) -> Tensor:
    """Apply one element of the square's symmetry group to patches of shape (N, H, H, C).

    Elements 0 to 3 are quarter turns, 4 to 7 the same after a flip of the columns.
    """
    flipped = patches.flip(2) if element >= 4 else patches
    return torch.rot90(flipped, element % 4, dims=(1, 2))


def random_dihedral(patches: Tensor, *, generator: torch.Generator) -> Tensor:
    """Show each patch of a batch (N, H, H, C) in a random one of its 8 views.

    Args:
        patches: The batch, on any device.
        generator: On the CPU, so that the draw is the same whatever the device.
    """
    draw = torch.randint(NUM_DIHEDRAL, (len(patches),), generator=generator)
    draw = draw.to(patches.device)
    result = torch.empty_like(patches)
    for element in range(NUM_DIHEDRAL):
        chosen = draw == element
        result[chosen] = dihedral(patches[chosen], element)
    return result
