"""Write a synthetic cohort as a patch tree with the layout of the Kaggle data set."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wsi_idc.core.constants import PATCH_PX
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.files import temporary_path
from wsi_idc.core.progress import progress
from wsi_idc.synthetic.tissue import SynthSlide, draw_slide

MIN_PATCHES = 40  # a slide with fewer patches is too small for both classes
# Smallest fraction of tissue in a kept patch. Nearly blank patches remain, as in the Kaggle set.
MIN_TISSUE_FRACTION = 0.06
# Expected fraction of a slide's patches that are kept; it determines the size of a slide.
KEPT_FRACTION = 0.80


@dataclass(frozen=True)
class CohortSummary:
    """Counts of patients and patches of a synthetic cohort."""

    patients: int
    patches: int
    idc_patches: int
    edge_patches: int


def write_cohort(
    root: Path, *, num_patients: int, patches_per_patient: int, seed: int
) -> CohortSummary:
    """Draw patients S0001, S0002, ... and write their patches in the layout of the Kaggle set.

    The same arguments give the same bytes. A larger ``num_patients`` adds patients, and does not
    change the first patients.

    Args:
        root: Folder of the patch tree; it is created if it does not exist.
        num_patients: Number of patients, at least 1.
        patches_per_patient: Approximate number of patches of each patient, at least 40. The number
            of a patient may differ from it by up to 45 %. The mean of a cohort may differ by up to
            10 %.
        seed: Seed of the cohort.

    Raises:
        WsiIdcError: ``root`` is a file or a folder that is not empty.
        ValueError: A number is out of its range.
    """
    if num_patients < 1 or patches_per_patient < MIN_PATCHES:
        raise ValueError(f"needs at least 1 patient, and {MIN_PATCHES} patches per patient")
    counts = []
    with (
        new_folder(root) as folder,
        progress(num_patients, what="drawing", unit="patient") as bar,
    ):
        for index in range(1, num_patients + 1):
            patient = f"S{index:04d}"
            height, width = _slide_size(np.random.default_rng([seed, index]), patches_per_patient)
            slide = draw_slide(patient, seed=seed, height_px=height, width_px=width)
            counts.append(_write_patches(folder, slide))
            bar.update(1)
    patches, idc_patches, edge_patches = (sum(column) for column in zip(*counts, strict=True))
    return CohortSummary(num_patients, patches, idc_patches, edge_patches)


@contextlib.contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Context manager: yield a temporary folder, and rename it to ``root`` when the block ends.

    Therefore ``root`` never has only a part of its files. If the block raises an error, the
    temporary folder is removed.

    Raises:
        WsiIdcError: ``root`` is a file or a folder that is not empty.
        BusyError: Another process is writing ``root``.
    """
    root = root.resolve()  # the path "." has no name
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise WsiIdcError(
            f"{root}: not an empty folder; a synthetic cohort must not be mixed with other files, "
            "so give another folder"
        )
    partial = root.with_name(f".{root.name}.partial")
    with temporary_path(root.with_name(f"{root.name}.lock")), contextlib.ExitStack() as stack:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.replace(root)


def _slide_size(rng: np.random.Generator, num_patches: int) -> tuple[int, int]:
    """Choose the height and width in px of a slide with about ``num_patches`` tissue patches."""
    area = num_patches / KEPT_FRACTION
    rows = round(np.sqrt(area * rng.uniform(0.7, 1.4)))
    cols = round(area / rows)
    # Half of the sides are not a multiple of a patch: they end with smaller patches.
    spare = rng.integers(5, PATCH_PX, 2) * (rng.random(2) < 0.5)
    return rows * PATCH_PX + int(spare[0]), cols * PATCH_PX + int(spare[1])


def _write_patches(root: Path, slide: SynthSlide) -> tuple[int, int, int]:
    """Write the patches with tissue.

    Returns:
        Number of all patches that were written, of IDC patches, and of edge patches.
    """
    folders = [root / slide.patient / str(label) for label in (0, 1)]
    for folder in folders:
        folder.mkdir(parents=True)
    total, num_idc, num_edge = 0, 0, 0
    height, width = slide.tissue.shape
    for top in range(0, height, PATCH_PX):
        for left in range(0, width, PATCH_PX):
            window = np.s_[top : top + PATCH_PX, left : left + PATCH_PX]
            tissue = slide.tissue[window]
            if tissue.mean() < MIN_TISSUE_FRACTION:
                continue
            label = int(slide.idc[window][tissue].mean() >= 0.5)
            name = f"{slide.patient}_idx5_x{left + 1}_y{top + 1}_class{label}.png"
            _, png = cv2.imencode(".png", slide.rgb[window][..., ::-1])
            (folders[label] / name).write_bytes(png.tobytes())
            total, num_idc = total + 1, num_idc + label
            num_edge += tissue.shape != (PATCH_PX, PATCH_PX)
    return total, num_idc, num_edge
