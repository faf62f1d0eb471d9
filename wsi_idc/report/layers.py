"""From a map to what a page draws: columns, grids, codes. Pure numbers, no page and no file.

A page is drawn in mm from the upper left corner of cell (0, 0), y downwards.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.geometry.grid import mosaic, scatter_to_grid
from wsi_idc.geometry.regions import region_boundary as grid_outline
from wsi_idc.maps.layers import label_names, robust_max
from wsi_idc.maps.patient_map import PatientMap

# What became of a patch; 0 where its label is unknown or there is no patch.
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_NEGATIVE = 1, 2, 3, 4
_MAX_CAM_SIDE = 16
_MAX_LEVEL = 255
_NUM_BINS = 40


@dataclass(frozen=True)
class BoundingBox:
    """The part of the grid that holds patches.

    Attributes:
        first_row, first_col: Its upper left cell.
        rows, cols: Its size in cells.
        cell_mm: Side of a cell.
    """

    first_row: int
    first_col: int
    rows: int
    cols: int
    cell_mm: float

    @property
    def x_mm(self) -> float:
        """Left edge."""
        return self.first_col * self.cell_mm

    @property
    def y_mm(self) -> float:
        """Upper edge."""
        return self.first_row * self.cell_mm

    @property
    def width_mm(self) -> float:
        """Width."""
        return self.cols * self.cell_mm

    @property
    def height_mm(self) -> float:
        """Height."""
        return self.rows * self.cell_mm

    def cells(self, row_col: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return cells counted from the window's upper left one, shape (N, 2)."""
        return row_col - np.array([self.first_row, self.first_col], np.int32)


def bounding_box(content: PatientMap) -> BoundingBox:
    """Return the window that just holds every patch."""
    first, last = content.row_col.min(axis=0), content.row_col.max(axis=0)
    rows, cols = (int(side) for side in last - first + 1)
    cell_mm = content.cell_px * content.mpp / 1000
    return BoundingBox(int(first[0]), int(first[1]), rows, cols, cell_mm)


def to_bbox_grid(values: NDArray, content: PatientMap, *, fill: float) -> NDArray:
    """Lay one value a patch on the window, shape (rows, cols)."""
    window = bounding_box(content)
    return scatter_to_grid(
        values, window.cells(content.row_col), shape=(window.rows, window.cols), fill=fill
    )


def stitched_in_window(image: NDArray[np.uint8], content: PatientMap) -> NDArray[np.uint8]:
    """Return the part of the stitched tissue, shape (h, w, 3), that lies in the window."""
    window, side = bounding_box(content), content.cell_px
    return image[window.first_row * side :, window.first_col * side :]


def patch_columns(content: PatientMap) -> dict[str, NDArray]:
    """Return what a page knows of each patch, one entry a patch."""
    window, names = bounding_box(content), label_names(content)
    cell = window.cells(content.row_col)
    columns: dict[str, NDArray] = {
        "row": content.row_col[:, 0],
        "col": content.row_col[:, 1],
        "x": content.coords[:, 0],
        "y": content.coords[:, 1],
        "x_mm": (content.row_col[:, 1] + 0.5) * window.cell_mm,
        "y_mm": (content.row_col[:, 0] + 0.5) * window.cell_mm,
        "place": cell[:, 0] * window.cols + cell[:, 1],
        "probability": content.probability,
        "label": content.label,
        "label_name": np.array([names[int(label)] for label in content.label], object),
    }
    if content.cam is not None:
        columns["cam_max"] = content.cam.max(axis=(1, 2))
    if content.uncertainty is not None:
        columns["uncertainty"] = content.uncertainty
    if content.smoothed is not None:
        columns["smoothed"] = content.smoothed
    return columns


def outcomes(label: NDArray[np.int8], called: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return what became of each patch, shape (N,); 0 where the label is unknown."""
    codes = np.zeros(len(label), np.uint8)
    codes[(label == 1) & called] = TRUE_POSITIVE
    codes[(label == 0) & called] = FALSE_POSITIVE
    codes[(label == 1) & ~called] = FALSE_NEGATIVE
    codes[(label == 0) & ~called] = TRUE_NEGATIVE
    return codes


def region_boundary(
    mask: NDArray[np.bool_], window: BoundingBox
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges between cells inside and outside of ``mask``, each run as one line.

    Args:
        mask: Shape (rows, cols) of the window.
        window: Where it lies.

    Returns:
        x and y of both ends in mm, each of shape (N, 2), horizontal lines first.
    """
    ends = grid_outline(mask) + np.array([window.first_col, window.first_row])
    return ends[..., 0] * window.cell_mm, ends[..., 1] * window.cell_mm


def small_cam(cam: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return CAMs of at most 16 x 16 values, larger ones by the mean of equal blocks.

    Args:
        cam: Shape (N, h, w).
    """
    for axis in (1, 2):
        side = cam.shape[axis]
        if side > _MAX_CAM_SIDE:
            starts = np.arange(_MAX_CAM_SIDE) * side // _MAX_CAM_SIDE
            sums = np.add.reduceat(cam, starts, axis=axis)
            counts = np.diff(np.append(starts, side))
            cam = (sums / (counts[:, None] if axis == 1 else counts)).astype(np.float32)
    return cam


def cam_levels(content: PatientMap) -> NDArray[np.uint8]:
    """Return the CAM mosaic in 255 equal steps from zero to ``robust_max``, 0 where no patch is.

    Returns:
        Shape (rows * h, cols * w) of the window: 1 is a CAM of zero, 255 one of the top or more.
    """
    window, cams = bounding_box(content), content.cell_cams()
    share = np.clip(np.nan_to_num(small_cam(cams)) / robust_max(cams), 0, 1)
    levels = (1 + np.round(share * (_MAX_LEVEL - 1))).astype(np.uint8)
    cells = window.cells(content.row_col)
    return mosaic(levels, cells, shape=(window.rows, window.cols), fill=0)


def histogram(values: NDArray[np.float32], label: NDArray[np.int8]) -> dict[str, NDArray]:
    """Return how values from 0 to 1 are spread, by label, as bars on top of each other.

    Args:
        values: Shape (N,).
        label: Shape (N,).

    Returns:
        left and right of each bin, and for each label that occurs ``bottom_L`` and ``top_L``, the
        share of all patches below and up to the end of its bar.
    """
    edges = np.linspace(0, 1, _NUM_BINS + 1)
    bars: dict[str, NDArray] = {"left": edges[:-1], "right": edges[1:]}
    below = np.zeros(_NUM_BINS)
    for one in (1, 0, -1):
        members = label == one
        if members.any():
            counts, _ = np.histogram(values[members], edges)
            above = below + counts / len(label)
            bars |= {f"bottom_{one}": below, f"top_{one}": above}
            below = above
    return bars
