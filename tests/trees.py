"""Small patch trees and packs of real files, made in a moment."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PATCH_PX = 50
# Patient to (row, col, label) of its patches; both classes in each patient.
PATIENTS = {
    "10253": [(0, 0, 0), (0, 1, 1), (2, 1, 0)],
    "10254": [(1, 0, 1), (1, 2, 0)],
    "9": [(0, 3, 0), (4, 0, 1)],
}


def pixels_of(
    patient: str, row: int, col: int, *, height: int = PATCH_PX, width: int = PATCH_PX
) -> NDArray[np.uint8]:
    """Return the pixels a patch of these trees has: noise that its name determines."""
    rng = np.random.default_rng([*patient.encode(), row, col])
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_name(patient: str, row: int, col: int, label: int, *, first: int = 1) -> str:
    """Return the name of a patch; ``first`` is what the data set counts from."""
    x, y = col * PATCH_PX + first, row * PATCH_PX + first
    return f"{patient}_idx5_x{x}_y{y}_class{label}.png"


def save_png(path: Path, pixels: NDArray) -> Path:
    """Write pixels as PNG, folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def add_patch(root: Path, patient: str, row: int, col: int, label: int, *, first: int = 1) -> Path:
    """Write one patch at its place in the tree and return its path."""
    name = file_name(patient, row, col, label, first=first)
    return save_png(root / patient / str(label) / name, pixels_of(patient, row, col))


def make_tree(
    root: Path,
    patients: Mapping[str, list[tuple[int, int, int]]] = PATIENTS,
    *,
    first: int = 1,
) -> Path:
    """Write a patch tree in the Kaggle layout and return its root."""
    for patient, patches in patients.items():
        for row, col, label in patches:
            add_patch(root, patient, row, col, label, first=first)
    return root
