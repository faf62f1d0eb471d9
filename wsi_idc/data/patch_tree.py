"""Write the patches of a pack as a patch tree of PNG files, in the layout of the Kaggle set."""

from pathlib import Path

import cv2
import numpy as np

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import full_disk_as_error
from wsi_idc.data.pack import Pack

_FIRST_PX = 1  # the Kaggle set counts px from 1
_GAP_ROWS = 1  # empty rows between two slides of a patient


def write_patch_tree(pack: Pack, folder: Path) -> int:
    """Write each labelled patch as PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png.

    X and Y are px of the patches. The layout has no slides: the slides of a patient are placed one
    below the other. Patches of unknown label have no place in this layout and are left out.

    Returns:
        Number of files.

    Raises:
        DataError: The folder has a file that does not belong to a patch tree.
        DiskFullError: The disk is full.
    """
    if folder.is_dir() and any(path.is_file() for path in folder.iterdir()):
        raise DataError(f"{folder} has files of other kinds; give an empty folder")
    index, cells, side = pack.index, pack.cells(), pack.info.patch_px
    num = 0
    with full_disk_as_error(folder):
        for patient in pack.patients:
            rows, first_row = pack.rows_of(patient), 0
            slides = index["slide"].to_numpy()[rows]
            for code in np.unique(slides):
                members = rows[slides == code]
                for row in members[index["label"].to_numpy()[members] >= 0]:
                    patch, label = index.iloc[row], int(index["label"].iloc[row])
                    y, x = (cells[row] + (first_row, 0)) * side + _FIRST_PX
                    name = f"{patient}_idx5_x{x}_y{y}_class{label}.png"
                    pixels = pack.patches[row][: patch["height"], : patch["width"], ::-1]
                    _write_png(folder / patient / str(label) / name, pixels)
                    num += 1
                first_row += int(cells[members, 0].max()) + 1 + _GAP_ROWS
    return num


def _write_png(path: Path, bgr: np.ndarray) -> None:
    """Write a PNG through a temporary name; a file of a tree can be written again at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, png = cv2.imencode(".png", bgr)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(png.tobytes())
    partial.replace(path)
