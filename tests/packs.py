"""Small patch trees of real files, and packs with content that no tree can have."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsi_idc.data.pack import Pack, PackInfo, write_pack
from wsi_idc.data.patch_store import FolderStore, UnreadablePatchError

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
    root: Path, patients: Mapping[str, list[tuple[int, int, int]]] = PATIENTS, *, first: int = 1
) -> Path:
    """Write a patch tree in the Kaggle layout and return its root."""
    for patient, patches in patients.items():
        for row, col, label in patches:
            add_patch(root, patient, row, col, label, first=first)
    return root


def add_bad_files(root: Path) -> dict[str, tuple[str, str]]:
    """Add files that cannot be packed; return path to reason and start of the detail."""
    good = (root / f"9/0/{file_name('9', 0, 3, 0)}").read_bytes()
    unreadable = [
        (b"", "empty file"),
        (b"x,y\n1,1\n", "not a PNG file"),
        (good[:20], "damaged PNG: no header"),
        (good[: len(good) // 2], "truncated PNG"),
        (good[:-1], "truncated PNG"),
        (good[:60] + bytes([good[60] ^ 255]) + good[61:], "damaged PNG: a checksum is wrong"),
        (np.zeros((51, 50, 3), np.uint8), "50x51 px is larger than a 50x50 patch"),
        (np.zeros((5000, 5000, 3), np.uint8), "5000x5000 px is larger"),
        (np.zeros((50, 50), np.uint16), "16 bits per channel"),
    ]
    expected = {}
    (root / "9/1").mkdir(exist_ok=True)
    for col, (content, detail) in enumerate(unreadable):
        path = f"9/1/{file_name('9', 30, col, 1)}"
        write = Path.write_bytes if isinstance(content, bytes) else save_png
        write(root / path, content)
        expected[path] = ("unreadable", detail)
    path = f"9/1/{file_name('9', 32, 0, 1)}"
    (root / path).symlink_to("/nowhere.png")
    expected[path] = ("no access", "cannot be read: No such file or directory")
    path = f"9/1/{file_name('9', 33, 0, 0)}"
    save_png(root / path, pixels_of("9", 33, 0))
    expected[path] = ("class contradicts folder", "class 0 in the name, 1 in the folder")
    return expected


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def make_unreadable(monkeypatch: pytest.MonkeyPatch, name: str, *, unless: str = "\0") -> None:
    """Simulate a disk error for the files whose path ends with ``name`` and has no ``unless``."""
    read = FolderStore.read

    def fail(self: FolderStore, path: str) -> tuple[bytes, str]:
        if path.endswith(name) and unless not in path:
            raise UnreadablePatchError("cannot be read: Input/output error")
        return read(self, path)

    monkeypatch.setattr(FolderStore, "read", fail)


INFO = PackInfo((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), PATCH_PX, 4.0, "assumed", "ab" * 32)


@dataclass
class Cell:
    """One patch; without ``pixels`` it is coloured noise, which counts as tissue."""

    patient: str
    row: int
    col: int
    label: int = 0
    pixels: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.pixels is None:
            self.pixels = pixels_of(self.patient, self.row, self.col)


def make_pack(path: Path, cells: list[Cell]) -> Pack:
    """Write cells as a pack, each as large as its pixels and padded white."""
    cells = sorted(cells, key=lambda cell: (cell.patient, cell.row, cell.col))
    stored = np.full((len(cells), PATCH_PX, PATCH_PX, 3), 255, np.uint8)
    rows = []
    for cell, place in zip(cells, stored, strict=True):
        height, width, _ = cell.pixels.shape
        place[:height, :width] = cell.pixels
        rows.append(
            {
                "path": file_name(cell.patient, cell.row, cell.col, cell.label),
                "patient": cell.patient,
                "x": cell.col * PATCH_PX,
                "y": cell.row * PATCH_PX,
                "label": cell.label,
                "height": height,
                "width": width,
            }
        )
    write_pack(path, pd.DataFrame(rows), [stored], info=INFO, provenance="{}")
    return Pack(path)


def block(patient: str, rows: int, cols: int, label: int = 0) -> list[Cell]:
    """Return a full grid of cells of one label."""
    return [Cell(patient, row, col, label) for row in range(rows) for col in range(cols)]


def flat(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    """Return a patch of one colour."""
    return np.full((PATCH_PX, PATCH_PX, 3), (red, green, blue), np.uint8)


def pack_content(path: Path) -> dict[str, object]:
    """Return everything in a pack but its provenance, which has the time."""
    with h5py.File(path) as file:
        data = {name: np.asarray(file[name]).tobytes() for name in ("patches", "x", "y", "label")}
        data |= {name: list(file[name].asstr()) for name in ("patients", "path")}
        attributes = {key: np.asarray(value).tolist() for key, value in file.attrs.items()}
        del attributes["provenance"]
        return data | attributes


def make_small_cohort(path: Path, *, num_patients: int = 4) -> Pack:
    """Write patients of 16 patches, most IDC ones darker, so that a training is short."""
    rng, cells = np.random.default_rng(0), []
    for patient in (f"p{number}" for number in range(num_patients)):
        for row, col in np.ndindex(4, 4):
            label = int(col >= 3 - row // 2)
            shade = np.uint8(rng.integers(60, 160) - 50 * label)
            cells.append(Cell(patient, row, col, label, pixels_of(patient, row, col) // 3 + shade))
    return make_pack(path, cells)
