"""Quality flags of patches of any resolution."""

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.data.artifacts import FLAGS, artifact_flags

# Resolution for which the limits of ``artifact_flags`` are set.
FLAG_MPP = 4.0
_MPP_TOLERANCE = 0.1  # largest relative difference from ``FLAG_MPP`` without resizing
_MIN_PX = 16  # smallest side of a patch for ``artifact_flags``


def can_flag(patch_px: int, *, mpp: float) -> bool:
    """Return whether patches have at least 16 px on a side after ``patch_flags`` shrinks them."""
    return _side(patch_px, mpp) >= _MIN_PX


def patch_flags(patches: NDArray[np.uint8], *, mpp: float) -> NDArray[np.uint8]:
    """Return the flags of each patch, a sum of values of ``artifacts.FLAGS``: shape (N,), uint8.

    Patches with less than 4 um per px are shrunk to 4 um per px. Patches with more than 4 um per px
    are not enlarged, because enlarged patches look blurred. These patches never have the flag
    "blur".

    Args:
        patches: RGB patches, shape (N, h, w, 3), uint8, for which ``can_flag`` is True.
        mpp: Microns per px of the patches.
    """
    side = _side(patches.shape[2], mpp)
    if side < patches.shape[2]:
        shrunk = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in patches]
        patches = np.stack(shrunk)
    flags = artifact_flags(patches)
    is_coarse = mpp > FLAG_MPP * (1 + _MPP_TOLERANCE)
    return flags & np.uint8(~FLAGS["blur"] & 255) if is_coarse else flags


def _side(patch_px: int, mpp: float) -> int:
    scale = mpp / FLAG_MPP
    return patch_px if scale >= 1 - _MPP_TOLERANCE else round(patch_px * scale)
