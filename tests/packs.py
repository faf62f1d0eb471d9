"""Small packs written directly, for what no patch tree can say: unknown labels, chosen pixels."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.trees import PATCH_PX, file_name, pixels_of
from wsi_idc.data.pack import Pack, PackInfo, write_pack

INFO = PackInfo((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), PATCH_PX, 4.0, "assumed", "ab" * 32)


@dataclass
class Cell:
    """One patch; without ``pixels`` it is coloured noise, which counts as tissue."""

    patient: str
    row: int
    col: int
    label: int = 0
    pixels: NDArray[np.uint8] | None = None

    def drawn(self) -> NDArray[np.uint8]:
        if self.pixels is not None:
            return self.pixels
        return pixels_of(self.patient, self.row, self.col)


def make_pack(path: Path, cells: list[Cell]) -> Pack:
    """Write cells as a pack, each as large as its pixels and padded white."""
    cells = sorted(cells, key=lambda cell: (cell.patient, cell.row, cell.col))
    stored = np.full((len(cells), PATCH_PX, PATCH_PX, 3), 255, np.uint8)
    rows = []
    for cell, place in zip(cells, stored, strict=True):
        height, width, _ = cell.drawn().shape
        place[:height, :width] = cell.drawn()
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


def make_small_cohort(path: Path) -> Pack:
    """Write four patients of 16 patches, most IDC ones darker, so that a training is short."""
    rng, cells = np.random.default_rng(0), []
    for patient in ("p0", "p1", "p2", "p3"):
        for row, col in np.ndindex(4, 4):
            label = int(col >= 3 - row // 2)
            shade = np.uint8(rng.integers(60, 160) - 50 * label)
            cells.append(Cell(patient, row, col, label, pixels_of(patient, row, col) // 3 + shade))
    return make_pack(path, cells)
