"""Position and numbers of the patches, for all formats, and the CSV of both."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.errors import MapError
from wsi_idc.core.files import write_bytes
from wsi_idc.maps.patient_map import PatientMap

# Corners are stored as integers, so rounding moves them by up to one px.
_TOLERANCE_PX = 1.0
_DECIMALS = 4
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "wsi-idc")


@dataclass(frozen=True)
class GridTransform:
    """Corner of the grid and side of its cells, in px of a picture.

    Attributes:
        x, y: Top left corner of cell (0, 0).
        side: Side of a cell; a fraction where two resolutions do not divide.
        mpp: Microns per px.
    """

    x: float
    y: float
    side: float
    mpp: float

    def points(self, col_row: NDArray) -> NDArray[np.float64]:
        """Return corners of cells in px.

        Each is a multiple of the exact side and not a sum of rounded sides, so rounding errors do
        not add up along the grid.

        Args:
            col_row: Columns and rows, where (0, 0) is the top left corner of the first cell, shape
                (..., 2).

        Returns:
            x and y, the same shape.
        """
        points = np.array([self.x, self.y]) + np.asarray(col_row, np.float64) * self.side
        return points.round(_DECIMALS)


def stable_id(patient_map: PatientMap, part: str) -> str:
    """Return the UUID of a part of a map, the same in every export of the same grid."""
    grid = f"{patient_map.patch_px}px/{patient_map.cell_px}px/{patient_map.mpp:g}um"
    return str(uuid.uuid5(_NAMESPACE, f"{patient_map.patient}/{grid}/{part}"))


def grid_transform(patient_map: PatientMap, coordinates: str = "level0") -> GridTransform:
    """Compute the position of the grid.

    Args:
        patient_map: The map.
        coordinates: "level0" for full-resolution px of the slide, or "image" for px of the
            stitched tissue. Both are the same for the map of a pack.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    if coordinates == "image":
        return GridTransform(0.0, 0.0, float(patient_map.cell_px), patient_map.mpp)
    side = patient_map.cell_size_level0
    offsets = patient_map.coords - patient_map.row_col[:, ::-1] * side  # (N, 2), x and y
    corner = np.median(offsets, axis=0).round()
    if np.abs(offsets - corner).max() > _TOLERANCE_PX:
        raise MapError(
            f"patient {patient_map.patient}: the corners of the patches are not on a grid of "
            f"{side:g} px; make the map again"
        )
    # Where patches overlap, a cell is the middle of its patch.
    margin = patient_map.origin_px * patient_map.mpp / patient_map.level0_mpp
    x, y = (float(edge) + margin for edge in corner)
    return GridTransform(x, y, side, patient_map.level0_mpp)


def patch_table(patient_map: PatientMap) -> pd.DataFrame:
    """Return the numbers of a map, one row a patch.

    Columns: ``prob_CLASS`` and ``logit_CLASS`` of both classes, ``label`` (-1 unknown), and if
    the map has them ``uncertainty``, ``smoothed``, ``cam_mean`` and ``cam_max``.
    """
    other, idc = patient_map.class_names
    columns = {
        f"prob_{other}": 1 - patient_map.probability.astype(np.float64),
        f"prob_{idc}": patient_map.probability.astype(np.float64),
        f"logit_{other}": patient_map.logit[:, 0],
        f"logit_{idc}": patient_map.logit[:, 1],
        "label": patient_map.label,
    }
    for name in ("uncertainty", "smoothed"):
        if (values := getattr(patient_map, name)) is not None:
            columns[name] = values
    if patient_map.cam is not None:
        columns["cam_mean"] = patient_map.cam.mean(axis=(1, 2))
        columns["cam_max"] = patient_map.cam.max(axis=(1, 2))
    return pd.DataFrame(columns)


def write_csv(patient_map: PatientMap, out: Path) -> None:
    """Write one line a patch: WSInfer's columns, the cell, then the other numbers.

    WSInfer's columns are ``minx``, ``miny``, ``width``, ``height`` as integers in level-0
    px, where neighboring patches share an edge, and ``prob_CLASS``.
    """
    transform = grid_transform(patient_map)
    cells = patient_map.row_col[:, ::-1]
    first, last = (transform.points(n).round().astype(np.int64) for n in (cells, cells + 1))
    numbers = patch_table(patient_map)
    corners = pd.DataFrame(
        np.hstack([first, last - first]), columns=["minx", "miny", "width", "height"]
    )
    row_col = pd.DataFrame(patient_map.row_col, columns=["row", "col"])
    table = pd.concat([corners, numbers.iloc[:, :2], row_col, numbers.iloc[:, 2:]], axis=1)
    write_bytes(out, table.to_csv(index=False, float_format="%.7g").encode())
