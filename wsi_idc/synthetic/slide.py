"""Write a synthetic slide as a pyramidal TIFF, and its ground truth as a mask."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import atomic_write, write_bytes
from wsi_idc.synthetic.slide_formats import write_pyramid
from wsi_idc.synthetic.tissue import SynthSlide, draw_slide

# The tissue is drawn at 4 um/px and enlarged to 1 um/px, the resolution of a low-power scan.
DRAWN_MPP = 4.0
MPP = 1.0


@dataclass(frozen=True)
class SlideSummary:
    """Files and size of a synthetic slide.

    Attributes:
        slide, mask: Paths of the slide and of its mask.
        width_px, height_px: Size of level 0.
        mpp: Microns per pixel of level 0.
        idc_fraction: Area of carcinoma, divided by the area of tissue. Fat does not count as
            tissue.
    """

    slide: Path
    mask: Path
    width_px: int
    height_px: int
    mpp: float
    idc_fraction: float


def write_slide(
    path: Path, *, seed: int, width_px: int = 4000, height_px: int = 3000
) -> SlideSummary:
    """Draw a slide, and write the slide and a mask of its tissue.

    The slide is a tiled TIFF with levels; see ``write_pyramid``. The mask ``NAME.mask.png`` is in
    the same folder, and has a quarter of the width and height of the slide. The values of the mask
    are 0 (background and fat), 1 (other tissue) and 2 (carcinoma). The same arguments give the same
    bytes.

    Args:
        path: Slide to write, ``.tif`` or ``.tiff``. The file name without suffix is the patient id.
        seed: Seed of tissue and stain.
        width_px: Width of level 0, a multiple of 4, at least 1000 px.
        height_px: Height of level 0, a multiple of 4, at least 1000 px.

    Raises:
        WsiIdcError: The suffix is not .tif or .tiff, or the slide or its mask exists already.
        ValueError: A side is too small or not a multiple of 4.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise WsiIdcError(f"{path}: a slide is written as TIFF; name it {path.stem}.tif")
    mask_path = path.with_name(f"{path.stem}.mask.png")
    for file in (path, mask_path):
        if file.exists():
            raise WsiIdcError(f"{file}: exists already; give another file")
    drawn, rgb = draw_enlarged(path.stem, seed=seed, width_px=width_px, height_px=height_px)
    mask = (drawn.tissue.astype(np.uint8) + (drawn.tissue & drawn.idc)).astype(np.uint8)
    _, png = cv2.imencode(".png", mask)
    write_bytes(mask_path, png.tobytes())
    with atomic_write(path) as partial:
        write_pyramid(partial, rgb, mpp=MPP)
    idc_fraction = float((mask == 2).sum() / (mask > 0).sum())
    return SlideSummary(path, mask_path, width_px, height_px, MPP, idc_fraction)


def draw_enlarged(
    name: str, *, seed: int, width_px: int, height_px: int, one_stain: bool = False
) -> tuple[SynthSlide, NDArray[np.uint8]]:
    """Draw a slide at ``DRAWN_MPP`` microns per px, and enlarge the pixels to ``MPP``.

    Args:
        name: Name of the slide; slides of different names differ in anatomy.
        seed: Seed of tissue and stain.
        width_px: Width of the enlarged slide, a multiple of 4, at least 1000 px.
        height_px: Height of the enlarged slide, a multiple of 4, at least 1000 px.
        one_stain: True if all slides with the same seed have the same stain; False if slides of
            different names also differ in stain.

    Returns:
        The slide before the enlargement, and the enlarged pixels. The enlarged pixels have the
        shape (height_px, width_px, 3), uint8.

    Raises:
        ValueError: A side is too small or not a multiple of 4.
    """
    scale = round(DRAWN_MPP / MPP)
    if width_px % scale or height_px % scale:
        raise ValueError(f"{width_px}x{height_px} px are not multiples of {scale}")
    drawn = draw_slide(
        name,
        seed=seed,
        height_px=height_px // scale,
        width_px=width_px // scale,
        one_stain=one_stain,
    )
    rgb = cv2.resize(drawn.rgb, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    return drawn, np.asarray(rgb, np.uint8)
