"""Write a synthetic slide as a pyramidal TIFF, with a mask of its ground truth."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import atomic_write, write_bytes
from wsi_idc.synthetic.tissue import draw_slide

# The tissue is drawn at 4 um/px and enlarged to 1 um/px, the resolution of a low-power scan.
DRAWN_MPP = 4.0
MPP = 1.0
NUM_LEVELS = 3


@dataclass(frozen=True)
class SlideSummary:
    """Files and size of a synthetic slide.

    Attributes:
        slide, mask: Paths of the slide and of its mask.
        width_px, height_px: Size of level 0.
        mpp: Microns per pixel of level 0.
        idc_fraction: Fraction of the tissue, without fat, that is carcinoma.
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
    """Draw a slide and write it as a tiled TIFF; each level halves the size of the previous level.

    The mask ``NAME.mask.png`` in the same folder has a quarter of the width and height. Its values
    are 0 (background, fat), 1 (other tissue) and 2 (carcinoma). The same arguments give the same
    bytes.

    Args:
        path: Slide to write, ``.tif`` or ``.tiff``; the name without suffix is the patient id.
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
    scale = round(DRAWN_MPP / MPP)
    if width_px % scale or height_px % scale:
        raise ValueError(f"{width_px}x{height_px} px are not multiples of {scale}")
    height, width = height_px // scale, width_px // scale
    drawn = draw_slide(path.stem, seed=seed, height_px=height, width_px=width)
    mask = (drawn.tissue.astype(np.uint8) + (drawn.tissue & drawn.idc)).astype(np.uint8)
    rgb = cv2.resize(drawn.rgb, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    _, png = cv2.imencode(".png", mask)
    write_bytes(mask_path, png.tobytes())
    with atomic_write(path) as partial:
        _write_pyramid(partial, np.asarray(rgb, np.uint8))
    idc_fraction = float((mask == 2).sum() / (mask > 0).sum())
    return SlideSummary(path, mask_path, width_px, height_px, MPP, idc_fraction)


def _write_pyramid(path: Path, rgb: NDArray[np.uint8]) -> None:
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib", "predictor": True}
    options |= {"resolutionunit": "CENTIMETER", "software": False, "metadata": None}
    # Each level is a page of the TIFF. OpenSlide reads such a file as a generic tiled TIFF.
    with tifffile.TiffWriter(path) as writer:
        for level in range(NUM_LEVELS):
            per_cm = 10_000 / (MPP * 2**level)
            text = f"synthetic tissue, {MPP:g} um/px" if level == 0 else None
            kind = 1 if level else 0  # bit 0 marks a smaller version of another page
            writer.write(
                rgb, subfiletype=kind, resolution=(per_cm, per_cm), description=text, **options
            )
            size = (rgb.shape[1] // 2, rgb.shape[0] // 2)
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
