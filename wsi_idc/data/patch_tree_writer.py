"""Write the patches of a pack as PNG files in a patch tree with the layout of the Kaggle set."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError
from wsi_idc.core.files import full_disk_as_error
from wsi_idc.data.pack import Pack

_FIRST_PX = 1  # the Kaggle set counts px from 1
_GAP_ROWS = 1  # empty rows between two slides of a patient


def write_patch_tree(pack: Pack, folder: Path) -> int:
    """Write each labelled patch as PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png.

    X and Y are the position of the patch in px of the patches, from 1. The layout has no slides, so
    the slides of a patient are placed one below the other. Patches of unknown label are not
    written. Files that an earlier call wrote for the same patches and labels are replaced.

    Returns:
        Number of files that were written.

    Raises:
        DataError: The folder has other files, such as patches with other labels.
        DiskFullError: The disk is full.
    """
    row_of = dict(_names_and_rows(pack))
    for path in folder.rglob("*"):
        is_hidden = path.name.startswith(".")  # for example, the partial file of a killed process
        if not is_hidden and path.is_file() and path.relative_to(folder).as_posix() not in row_of:
            raise DataError(f"{folder} has other files, such as {path}; give an empty folder")
    sizes = pack.index[["height", "width"]].to_numpy()
    with full_disk_as_error(folder):
        for name, row in row_of.items():
            height, width = sizes[row]
            _write_png(folder / name, pack.patches[row][:height, :width])
    return len(row_of)


def _names_and_rows(pack: Pack) -> Iterator[tuple[str, int]]:
    """Yield, for each labelled patch, its path in the tree and its row in the pack."""
    slides, labels = (pack.index[name].to_numpy() for name in ("slide", "label"))
    cells, side = pack.cells(), pack.info.patch_px
    for patient in pack.patients:
        rows, first_row = pack.rows_of(patient), 0
        for code in np.unique(slides[rows]):
            members = rows[slides[rows] == code]
            for row in members[labels[members] >= 0]:
                y, x = (cells[row] + (first_row, 0)) * side + _FIRST_PX
                name = f"{patient}_idx5_x{x}_y{y}_class{labels[row]}.png"
                yield f"{patient}/{labels[row]}/{name}", int(row)
            first_row += int(cells[members, 0].max()) + 1 + _GAP_ROWS


def _write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write a PNG under a temporary name, then rename the file, so that no PNG is incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, png = cv2.imencode(".png", rgb[..., ::-1])
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(png.tobytes())
    partial.replace(path)
