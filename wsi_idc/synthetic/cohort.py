"""Write a synthetic cohort of drawn tissue in the layout of the Kaggle patch tree."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import temporary_path
from wsi_idc.synthetic.tissue import SynthSlide, draw_slide

MIN_PATCHES = 40  # below it there is no room for both classes
# Of a patch; low, so that some nearly blank patches stay as in the real set.
MIN_TISSUE_FRACTION = 0.06
KEPT_FRACTION = 0.80  # of the patches of a slide; sets the canvas for a wished number


@dataclass(frozen=True)
class CohortSummary:
    """What ``write_cohort`` wrote: counts of patients and patches."""

    patients: int
    patches: int
    idc_patches: int
    edge_patches: int


def write_cohort(
    root: Path,
    *,
    num_patients: int,
    patches_per_patient: int,
    seed: int,
    on_patient: Callable[[int], None] | None = None,
) -> CohortSummary:
    """Draw patients S0001, S0002, ... and write their patches as the Kaggle set has them.

    The same arguments give the same bytes, and a patient does not depend on how many there are.

    Args:
        root: Folder of the patch tree; made if absent.
        num_patients: Number of patients, at least 1.
        patches_per_patient: Wished number of patches of each patient, at least 40. The mean over
            a cohort is within 10 %, one patient within 45 %: anatomy decides.
        seed: Seed of the cohort.
        on_patient: Called after each patient with the number of its patches.

    Returns:
        Counts of what was written.

    Raises:
        WsiIdcError: ``root`` is a file or holds something already.
        ValueError: A number is out of its range.
    """
    if num_patients < 1 or patches_per_patient < MIN_PATCHES:
        raise ValueError(f"needs 1 patient and {MIN_PATCHES} patches a patient, or more")
    root = root.resolve()  # "." has no name to draw under
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise WsiIdcError(
            f"{root}: not an empty folder, and a synthetic cohort is never mixed with other files;"
            " name another folder"
        )
    # Drawn under another name: a cohort that is there is whole. What a kill left is drawn over.
    partial = root.with_name(f".{root.name}.partial")
    counts = []
    with temporary_path(root.with_name(f"{root.name}.lock")), _emptied(partial):
        for index in range(1, num_patients + 1):
            patient = f"S{index:04d}"
            height, width = _slide_size(np.random.default_rng([seed, index]), patches_per_patient)
            slide = draw_slide(patient, seed=seed, height_px=height, width_px=width)
            counts.append(_write_patches(partial, slide))
            if on_patient is not None:
                on_patient(counts[-1][0])
        partial.replace(root)
    patches, idc_patches, edge_patches = (sum(column) for column in zip(*counts, strict=True))
    return CohortSummary(num_patients, patches, idc_patches, edge_patches)


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """See that a folder of ours is gone before and after a block."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _slide_size(rng: np.random.Generator, patches: int) -> tuple[int, int]:
    """Choose height and width, px, for about ``patches`` kept patches; half are off the grid."""
    area = patches / KEPT_FRACTION
    rows = round(np.sqrt(area * rng.uniform(0.7, 1.4)))
    cols = round(area / rows)
    spare = rng.integers(5, PATCH_PX, 2) * (rng.random(2) < 0.5)
    return rows * PATCH_PX + int(spare[0]), cols * PATCH_PX + int(spare[1])


def _write_patches(root: Path, slide: SynthSlide) -> tuple[int, int, int]:
    """Write the patches that hold tissue; return the numbers of all, of IDC, of edge patches."""
    folders = [root / slide.patient / str(label) for label in (0, 1)]
    for folder in folders:
        folder.mkdir(parents=True)
    total, num_idc, num_edge = 0, 0, 0
    height, width = slide.tissue.shape
    for top in range(0, height, PATCH_PX):
        for left in range(0, width, PATCH_PX):
            where = np.s_[top : top + PATCH_PX, left : left + PATCH_PX]
            tissue = slide.tissue[where]
            if tissue.mean() < MIN_TISSUE_FRACTION:
                continue
            label = int(slide.idc[where][tissue].mean() >= 0.5)
            name = f"{slide.patient}_idx5_x{left + 1}_y{top + 1}_class{label}.png"
            _, png = cv2.imencode(".png", slide.rgb[where][..., ::-1])
            (folders[label] / name).write_bytes(png.tobytes())
            total, num_idc = total + 1, num_idc + label
            num_edge += tissue.shape != (PATCH_PX, PATCH_PX)
    return total, num_idc, num_edge
