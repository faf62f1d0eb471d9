"""Augmentation of whole batches on the device, each patch with a draw of its own.

Every draw is made on the CPU beforehand, so that a patch is shown in the same way whatever the
device, and whatever part of a batch it is computed in. What is applied is decided by the draws
alone: a part that leaves every patch as it is costs nothing.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

NUM_DIHEDRAL = 8


@dataclass(frozen=True)
class _Strength:
    """How far an augmentation goes: half-widths of uniform draws, 0 for none.

    Attributes:
        dihedral: Whether patches are shown in all 8 flips and quarter turns.
        turned: Share of the patches that are turned freely besides.
        brightness, contrast, saturation: Of a factor around 1.
        hue: In full turns of the colour circle.
        stain_scale: Of a factor around 1, for each stain.
        stain_shift: Of a sum, for each stain, in natural optical density.
    """

    dihedral: bool = True
    turned: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    stain_scale: float = 0.0
    stain_shift: float = 0.0


# Tissue has no up and no left: the 8 views are free. Varied colour makes a network robust to other
# laboratories (Tellez et al. 2019, arXiv:1902.06543); how far it is varied is chosen by eye on the
# figure of wsi-idc explore: light passes for another slide, strong still passes for H&E.
_STRENGTHS = {
    "none": _Strength(dihedral=False),
    "light": _Strength(brightness=0.1, contrast=0.1, saturation=0.1),
    "strong": _Strength(
        # Interpolation blurs, and what is predicted later is not blurred: half stays sharp.
        turned=0.5,
        brightness=0.2,  # darker, glass is no longer white
        contrast=0.25,
        saturation=0.25,
        hue=0.02,  # at 0.05 eosin turns as brown as DAB, another staining
        # Both are 0.05 in their "HED-light". A larger scale leaves glass white; a shift dyes it.
        stain_scale=0.15,
        stain_shift=0.03,
    ),
}
AUGMENTATIONS = tuple(_STRENGTHS)

# Colours of haematoxylin, eosin and DAB: the share of each in the optical density of red, green
# and blue (Ruifrok and Johnston 2001, as rgb_from_hed of scikit-image).
_STAINS = torch.tensor(
    [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64
)
_DARKEST = 1e-6  # black has an infinite optical density; the same floor as scikit-image's
# Rec. 601 luma, rounded as torchvision's rgb_to_grayscale has it.
_LUMA = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
# RGB to luma and two axes of colour (NTSC 1953, as scikit-image's yiq_from_rgb).
_YIQ = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [0.59590059, -0.27455667, -0.32134392],
        [0.21153661, -0.52273617, 0.31119955],
    ],
    dtype=torch.float64,
)


@dataclass(frozen=True, eq=False)
class AugmentParams:
    """What happens to each patch of a batch, on the CPU.

    Attributes:
        element: Of the dihedral group, 0 to 7, shape (N,), int64.
        angle: Of the free rotation after it, counter-clockwise, radians, shape (N,).
        stain_scale: Factor of the optical density of each stain, shape (N, 3).
        stain_shift: Natural optical density added of each stain, shape (N, 3).
        brightness, contrast, saturation: Factors as torchvision's adjust_* take, shape (N,).
        hue: Full turns from red towards green, as torchvision's hue factor, shape (N,).
    """

    element: Tensor
    angle: Tensor
    stain_scale: Tensor
    stain_shift: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor

    def __len__(self) -> int:
        return len(self.element)

    def take(self, rows: Tensor | NDArray[np.int64] | slice) -> "AugmentParams":
        """Return the draws of a part of the batch."""
        return AugmentParams(*(getattr(self, field.name)[rows] for field in fields(self)))


def sample_params(name: str, num: int, *, generator: torch.Generator) -> AugmentParams:
    """Draw for ``num`` patches what the augmentation ``name`` does to them.

    Args:
        name: One of AUGMENTATIONS.
        num: Patches of the whole batch, however it is split later.
        generator: On the CPU.
    """
    strength = _STRENGTHS[name]

    def uniform(half_width: float, *shape: int) -> Tensor:
        return half_width * (2 * torch.rand(num, *shape, generator=generator) - 1)

    # All is drawn, wanted or not: what one part draws does not depend on another's strength.
    element = torch.randint(NUM_DIHEDRAL, (num,), generator=generator)
    is_turned = torch.rand(num, generator=generator) < strength.turned
    return AugmentParams(
        element=element * strength.dihedral,
        angle=uniform(math.pi) * is_turned,
        stain_scale=1 + uniform(strength.stain_scale, 3),
        stain_shift=uniform(strength.stain_shift, 3),
        brightness=1 + uniform(strength.brightness),
        contrast=1 + uniform(strength.contrast),
        saturation=1 + uniform(strength.saturation),
        hue=uniform(strength.hue),
    )


def augment(images: Tensor, draws: AugmentParams) -> Tensor:
    """Show images as drawn: first turned, then stained, then seen in another light.

    Args:
        images: Shape (N, 3, H, H), float32, 0..1, on any device, in any memory format.
        draws: One for each image.

    Returns:
        The same shape and range, channels last in memory; ``images`` itself where nothing is to
        be done.
    """
    assert len(images) == len(draws)
    result = images
    # Half precision would show in the colours.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        if draws.element.any():
            result = dihedral(result, draws.element)
        if draws.angle.any():
            result = _rotate(result, draws.angle)
        if (draws.stain_scale != 1).any() or draws.stain_shift.any():
            result = _stain_jitter(result, draws)
        factors = torch.stack([draws.brightness, draws.contrast, draws.saturation])
        if (factors != 1).any() or draws.hue.any():
            result = _color_jitter(result, draws)
        if result is images:
            return images
        return result.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def dihedral(images: Tensor, element: Tensor) -> Tensor:
    """Apply to each image (N, C, H, H) of any dtype its element of the square's symmetry group.

    Elements 0 to 3 are quarter turns counter-clockwise, 4 to 7 the same after a flip of the
    columns.

    Args:
        images: The batch.
        element: 0 to 7, shape (N,), int64.
    """
    num, channels, height, width = images.shape
    assert height == width
    places = _places(height).to(images.device)[element.to(images.device)]  # (N, H * H)
    flat = images.flatten(2)  # a view, also of channels last
    return flat.gather(2, places[:, None].expand(num, channels, -1)).view(images.shape)


@cache
def _places(side: int) -> Tensor:
    """Return where each element takes each pixel from, shape (8, side * side)."""
    here = torch.arange(side * side).view(side, side)
    views = [torch.rot90(start, turns) for start in (here, here.fliplr()) for turns in range(4)]
    return torch.stack(views).flatten(1)


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Turn the images whose angle is not 0; the rim is mirrored, so that corners hold tissue."""
    rows = angle.nonzero().squeeze(1)
    side, device = images.shape[-1], images.device
    cos, sin = (part[rows, None, None].to(device) for part in (angle.cos(), angle.sin()))
    # Centres of the pixels as grid_sample counts them, -1..1 from edge to edge.
    centres = (2 * torch.arange(side, device=device) + 1) / side - 1
    y, x = centres[:, None], centres[None, :]
    grid = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)  # (n, H, H, 2)
    rows = rows.to(device)
    turned = F.grid_sample(images[rows], grid, padding_mode="reflection", align_corners=False)
    return images.index_copy(0, rows, turned)


def _stain_jitter(images: Tensor, draws: AugmentParams) -> Tensor:
    """Vary the amount of each stain (Tellez et al. 2018, IEEE Trans. Medical Imaging 37(9)).

    Optical density is linear in the stains: taking it apart, scaling, shifting and putting it
    together again is one matrix and one offset for each image. Unlike scikit-image's rgb2hed it
    keeps amounts below 0, so that a scale of 1 and no shift change nothing.
    """
    scale, shift = draws.stain_scale.double(), draws.stain_shift.double()
    matrix = _STAINS.T @ (scale[:, :, None] * torch.linalg.inv(_STAINS.T))  # (N, 3, 3)
    offset = shift @ _STAINS  # (N, 3)
    log = images.clamp(min=_DARKEST).log_()  # minus the optical density
    return _linear(log, matrix, -offset[:, :, None].to(log)).exp_()


def _color_jitter(images: Tensor, draws: AugmentParams) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order.

    The first three are torchvision's blends with black, with the mean grey and with the pixel's
    own grey, but clamped only at the end. Hue turns the colours in the plane of I and Q of YIQ:
    linear, and without the leaps of HSV among near-greys.
    """
    brightness, contrast = draws.brightness.double(), draws.contrast.double()
    saturation = draws.saturation.double()[:, None, None]
    colour = saturation * torch.eye(3, dtype=torch.float64) + (1 - saturation) * _LUMA
    colour = _hue_matrix(draws.hue) @ colour  # (N, 3, 3)
    own = (brightness * contrast)[:, None, None] * colour
    # The mean grey, spread over the channels and then coloured as they are.
    of_mean = (brightness * (1 - contrast))[:, None, None] * colour.sum(2, keepdim=True) * _LUMA
    mean = images.mean(dim=(2, 3))[:, :, None]  # (N, 3, 1)
    return _linear(images, own, of_mean.to(mean) @ mean)


def _hue_matrix(hue: Tensor) -> Tensor:
    """Return the matrices (N, 3, 3) that turn colours by ``hue`` (N,) full turns."""
    turn = torch.zeros(len(hue), 3, 3, dtype=torch.float64)
    turn[:, 0, 0] = 1
    angle = 2 * math.pi * hue.double()
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2] = angle.sin()  # from I to Q is from red away from green
    turn[:, 2, 1] = -angle.sin()
    return torch.linalg.inv(_YIQ) @ turn @ _YIQ


def _linear(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Return ``matrix`` (N, 3, 3) times each pixel of each image plus ``offset`` (N, 3, 1)."""
    return torch.baddbmm(offset, matrix.to(images), images.flatten(2)).view(images.shape)


def sample_mixup(num: int, *, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw with whom and how each patch is mixed (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        num: Patches of the whole batch.
        alpha: Of Beta(alpha, alpha), above 0; the larger, the more is mixed.
        generator: On the CPU.

    Returns:
        The partner of each patch, shape (num,), int64, a permutation; and the share of the patch
        itself, shape (num,), float32, 0.5..1: its own label weighs most.
    """
    partner = torch.randperm(num, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))  # torch draws a Beta only globally
    share = np.random.default_rng(seed).beta(alpha, alpha, num)
    return partner, torch.from_numpy(np.maximum(share, 1 - share)).float()


def mix(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return ``share`` (N,) of each image and the rest of the other one."""
    return torch.lerp(other, images, share.to(images)[:, None, None, None])
