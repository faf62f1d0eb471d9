"""Augmentation of batches on the device, with separate random parameters for each patch.

The parameters are sampled on the CPU in advance. Therefore they depend neither on the device nor on
the division of a batch among processes. An augmentation that changes no patch is skipped.
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
# For each element of the dihedral group, the element that undoes it. Elements 1 and 3 are quarter
# turns: 3 undoes 1, and 1 undoes 3. Every other element undoes itself.
INVERSE_DIHEDRAL = (0, 3, 2, 1, 4, 5, 6, 7)


@dataclass(frozen=True)
class _Strength:
    """Strength of an augmentation: the largest random change of each parameter; 0 is no change."""

    dihedral: bool = True  # flips and quarter turns
    rotated: float = 0.0  # fraction of the patches that are also rotated by a random angle
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    stain_scale: float = 0.0
    stain_shift: float = 0.0


# Tissue has no orientation, so all 8 flips and rotations are valid. Color jitter makes a network
# robust to slides of other laboratories (Tellez et al. 2019, arXiv:1902.06543). The strengths were
# chosen by eye on the figure of wsi-idc explore: after "light", a patch looks like a patch of
# another slide; after "strong", it still looks like H&E.
_STRENGTHS = {
    "none": _Strength(dihedral=False),
    "light": _Strength(brightness=0.1, contrast=0.1, saturation=0.1),
    "strong": _Strength(
        # Rotation blurs a patch. Half of the patches stay sharp, like the patches at inference.
        rotated=0.5,
        brightness=0.2,  # a larger value would make glass gray
        contrast=0.25,
        saturation=0.25,
        hue=0.02,  # at 0.05 eosin becomes as brown as DAB, another stain
        # "HED-light" of Tellez et al. 2019 uses 0.05 for both. Here the scale is larger, because it
        # keeps glass white, and the shift is smaller, because it colors glass.
        stain_scale=0.15,
        stain_shift=0.03,
    ),
}
AUGMENTATIONS = tuple(_STRENGTHS)

# Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001;
# equal to scikit-image's rgb_from_hed).
_STAINS = torch.tensor(
    [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64
)
_DARKEST = 1e-6  # black has an infinite optical density; scikit-image has the same minimum
# Rec. 601 luma, rounded as in torchvision's rgb_to_grayscale.
_LUMA = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
# Matrix from RGB to luma and two color axes (NTSC 1953; equal to scikit-image's yiq_from_rgb).
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
    """Augmentation parameters of each patch of a batch, on the CPU.

    Attributes:
        dihedral_index: Element of the dihedral group, 0 to 7, shape (N,), int64.
        angle: Angle of an additional rotation, counter-clockwise, in radians, shape (N,).
        stain_scale: Factor of the optical density of each stain, shape (N, 3).
        stain_shift: Optical density (natural logarithm) added to each stain, shape (N, 3).
        brightness, contrast, saturation: Factors, shape (N,); torchvision's ``adjust_brightness``
            and similar functions have the same factors.
        hue: Hue shift, shape (N,); 1 is a full turn, and red turns towards green.
    """

    dihedral_index: Tensor
    angle: Tensor
    stain_scale: Tensor
    stain_shift: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor

    def __len__(self) -> int:
        return len(self.dihedral_index)

    def take(self, rows: Tensor | NDArray[np.int64] | slice) -> "AugmentParams":
        """Return the parameters of the patches in ``rows`` of the batch."""
        return AugmentParams(*(getattr(self, field.name)[rows] for field in fields(self)))


def sample_params(name: str, num: int, *, generator: torch.Generator) -> AugmentParams:
    """Sample the parameters of an augmentation.

    Args:
        name: One of AUGMENTATIONS.
        num: Number of patches of the complete batch.
        generator: Random generator on the CPU.
    """
    strength = _STRENGTHS[name]

    def uniform(half_width: float, *shape: int) -> Tensor:
        return half_width * (2 * torch.rand(num, *shape, generator=generator) - 1)

    # Parameters of strength 0 are sampled too, so that the other random values do not change.
    dihedral_index = torch.randint(NUM_DIHEDRAL, (num,), generator=generator)
    is_rotated = torch.rand(num, generator=generator) < strength.rotated
    return AugmentParams(
        dihedral_index=dihedral_index * strength.dihedral,
        angle=uniform(math.pi) * is_rotated,
        stain_scale=1 + uniform(strength.stain_scale, 3),
        stain_shift=uniform(strength.stain_shift, 3),
        brightness=1 + uniform(strength.brightness),
        contrast=1 + uniform(strength.contrast),
        saturation=1 + uniform(strength.saturation),
        hue=uniform(strength.hue),
    )


def augment(images: Tensor, params: AugmentParams) -> Tensor:
    """Augment images: flips and rotation, then stain jitter, then color jitter.

    Args:
        images: Images, shape (N, 3, H, H), float32, 0..1, on any device, in any memory format.
        params: Parameters of each image.

    Returns:
        Changed images in the memory format channels_last, with the shape and range of ``images``.
        If no image changes, the result is ``images`` itself.
    """
    assert len(images) == len(params)
    result = images
    # Autocast is off, because errors of half precision would be visible in the colors.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        if params.dihedral_index.any():
            result = dihedral(result, params.dihedral_index)
        if params.angle.any():
            result = _rotate(result, params.angle)
        if (params.stain_scale != 1).any() or params.stain_shift.any():
            result = _stain_jitter(result, params)
        factors = torch.stack([params.brightness, params.contrast, params.saturation])
        if (factors != 1).any() or params.hue.any():
            result = _color_jitter(result, params)
        if result is images:
            return images
        return result.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def dihedral(images: Tensor, index: Tensor) -> Tensor:
    """Flip and rotate each image by its element of the symmetry group of the square.

    Elements 0 to 3 turn an image by 0 to 3 quarter turns counter-clockwise. Elements 4 to 7 flip an
    image horizontally, then turn it by 0 to 3 quarter turns.

    Args:
        images: Images, shape (N, C, H, H), any dtype.
        index: Element of each image, 0 to 7, shape (N,), int64.
    """
    num, channels, height, width = images.shape
    assert height == width
    pixels = _source_pixels(height).to(images.device)[index.to(images.device)]  # (N, H * H)
    flat = images.flatten(2)  # no copy, even for channels last
    return flat.gather(2, pixels[:, None].expand(num, channels, -1)).view(images.shape)


@cache
def _source_pixels(side: int) -> Tensor:
    """Return, for each element of the dihedral group, the index of each pixel before the change.

    The result has the shape (8, side * side). An index counts the pixels of an image row by row.
    """
    pixels = torch.arange(side * side).view(side, side)
    views = [torch.rot90(start, turns) for start in (pixels, pixels.fliplr()) for turns in range(4)]
    return torch.stack(views).flatten(1)


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate the images whose angle is not 0; fill the corners with reflected pixels."""
    rows = angle.nonzero().squeeze(1)
    side, device = images.shape[-1], images.device
    cos, sin = (part[rows, None, None].to(device) for part in (angle.cos(), angle.sin()))
    # Pixel centers in the coordinates of grid_sample, -1..1 from edge to edge.
    centers = (2 * torch.arange(side, device=device) + 1) / side - 1
    y, x = centers[:, None], centers[None, :]
    grid = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)  # (n, H, H, 2)
    rows = rows.to(device)
    rotated = F.grid_sample(images[rows], grid, padding_mode="reflection", align_corners=False)
    return images.index_copy(0, rows, rotated)


def _stain_jitter(images: Tensor, params: AugmentParams) -> Tensor:
    """Vary the amount of each stain (Tellez et al. 2018, IEEE Trans. Medical Imaging 37(9))."""
    # Optical density is linear in the amounts of the stains, so each image needs one matrix and one
    # offset. scikit-image's rgb2hed sets negative amounts to 0. This function keeps negative
    # amounts, so that a scale of 1 changes no pixel.
    scale, shift = params.stain_scale.double(), params.stain_shift.double()
    matrix = _STAINS.T @ (scale[:, :, None] * torch.linalg.inv(_STAINS.T))  # (N, 3, 3)
    offset = shift @ _STAINS  # (N, 3)
    log = images.clamp(min=_DARKEST).log_()  # negative optical density
    return _linear(log, matrix, -offset[:, :, None].to(log)).exp_()


def _color_jitter(images: Tensor, params: AugmentParams) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order."""
    # As in torchvision, these changes blend the image with black, with its mean gray, and with the
    # gray of each pixel. But values are clamped only at the end. The hue is rotated in the I-Q
    # plane of YIQ, because HSV is not continuous near gray.
    brightness, contrast = params.brightness.double(), params.contrast.double()
    saturation = params.saturation.double()[:, None, None]
    color = saturation * torch.eye(3, dtype=torch.float64) + (1 - saturation) * _LUMA
    angle = 2 * math.pi * params.hue.double()
    rotation = torch.zeros(len(params), 3, 3, dtype=torch.float64)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2] = angle.sin()  # with this sign, red turns towards green
    rotation[:, 2, 1] = -angle.sin()
    color = torch.linalg.inv(_YIQ) @ rotation @ _YIQ @ color  # (N, 3, 3)
    pixel_matrix = (brightness * contrast)[:, None, None] * color
    # This matrix converts the mean color of an image to its weighted mean gray.
    mean_matrix = (brightness * (1 - contrast))[:, None, None] * color.sum(2, keepdim=True) * _LUMA
    mean = images.mean(dim=(2, 3))[:, :, None]  # (N, 3, 1)
    return _linear(images, pixel_matrix, mean_matrix.to(mean) @ mean)


def _linear(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Multiply the color of each pixel by the matrix of its image, and add the offset.

    ``matrix`` has the shape (N, 3, 3), and ``offset`` has the shape (N, 3, 1).
    """
    return torch.baddbmm(offset, matrix.to(images), images.flatten(2)).view(images.shape)


def sample_mixing(
    num: int, side: int, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample a partner of each patch, and the weight of each px of the patch itself.

    Mixup (Zhang et al. 2018, arXiv:1710.09412) has one weight for all px of a patch. CutMix (Yun et
    al. 2019, arXiv:1905.04899) has weight 0 in a random rectangle, and 1 outside.

    Args:
        num: Number of patches of the complete batch.
        side: Side of a patch in px.
        mixup: Parameter of Beta(mixup, mixup), from which weights are drawn; 0: no mixup.
        cutmix: Fraction of the patches that use CutMix instead of mixup.
        generator: Random generator on the CPU.

    Returns:
        Index of the partner of each patch, shape (num,), int64; each patch is the partner of one
        patch.
        Weight of each px, shape (num, 1, side, side), float32; the partner has the rest of the
        weight. Without CutMix, the shape is (num, 1, 1, 1).
    """
    partner = torch.randperm(num, generator=generator)
    # torch's Beta takes no generator.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    lam = rng.beta(mixup, mixup, num) if mixup else np.ones(num)
    weight = np.maximum(lam, 1 - lam)[:, None, None, None]
    if cutmix:
        # The area of the rectangle is uniform, before the part outside the patch is cut off.
        half = side * np.sqrt(rng.random((num, 1, 1))) / 2
        distance = np.abs(np.arange(side) + 0.5 - side * rng.random((num, 2, 1)))  # from its center
        is_near = distance < half
        is_inside = (is_near[:, 0, :, None] & is_near[:, 1, None, :])[:, None]
        is_cut = rng.random((num, 1, 1, 1)) < cutmix
        weight = np.where(is_cut, ~is_inside, weight)
    return partner, torch.from_numpy(weight).float()


def mix(images: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum of each image of ``images`` and the image of ``other`` in its row.

    ``weight`` is the weight of each px of ``images``, shape (N, 1, H, W) or (N, 1, 1, 1). The px of
    ``other`` have the weight 1 - ``weight``.
    """
    return torch.lerp(other, images, weight.to(images))
