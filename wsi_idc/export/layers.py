"""A map as pictures that lie over each other, painted a row of the grid at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from wsi_idc.geometry.grid import scatter_to_grid
from wsi_idc.maps.layers import TOP_PERCENTILE, robust_max
from wsi_idc.maps.map_reader import ReadRows
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS
from wsi_idc.plotting.colors import LABEL_COLORS as HEX_COLOURS

Colour = tuple[int, int, int]
# By label, the unknown one last: LABEL_COLOURS[-1].
LABEL_COLOURS: tuple[Colour, ...] = tuple(
    ImageColor.getrgb(HEX_COLOURS[label])[:3] for label in (0, 1, -1)
)
# No numbers in 0..1 have a larger standard deviation.
MAX_DEVIATION = 0.5
_OPAQUE = 255
# Under the transparency white, for programs that know none.
_NO_PATCH = (255, 255, 255, 0)


@dataclass(frozen=True)
class Layer:
    """One picture of a map.

    Attributes:
        name: What it shows, as in file names.
        title: The same for people.
        scale: What its colours mean, JSON-ready.
        paint_row: A row of the grid, and the side of a cell in px, to the picture of that row,
            shape (side, cols * side, 4), uint8, red, green, blue and alpha, transparent white
            where there is no patch.
    """

    name: str
    title: str
    scale: Mapping[str, Any]
    paint_row: Callable[[int, int], NDArray[np.uint8]]


def layers_of(content: PatientMap, read_rows: ReadRows | None) -> list[Layer]:
    """Return the layers that a map has.

    Args:
        content: The map.
        read_rows: Reads its stitched tissue; None where there is none.
    """
    idc = content.class_names[1]
    layers = [_value_layer(content, "probability", f"Probability of {idc}", content.probability)]
    if read_rows is not None:
        layers.insert(0, _tissue_layer(content, read_rows))
    if content.smoothed is not None:
        title = f"Probability of {idc}, smoothed"
        layers.append(_value_layer(content, "smoothed", title, content.smoothed))
    if content.cam is not None:
        layers.append(_cam_layer(content, content.cell_cams()))
    if (content.label >= 0).any():
        layers.append(_label_layer(content))
    if content.uncertainty is not None:
        layers.append(
            _value_layer(
                content,
                "uncertainty",
                "Standard deviation of the probability",
                content.uncertainty,
                top=MAX_DEVIATION,
            )
        )
    return layers


def _tissue_layer(content: PatientMap, read_rows: ReadRows) -> Layer:
    side, present = content.cell_px, _present(content)

    def paint_row(row: int, cell_px: int) -> NDArray[np.uint8]:
        strip = read_rows(row * side, (row + 1) * side)
        if cell_px != side:
            # Each row of cells by itself, so that none is shifted.
            size = (present.shape[1] * cell_px, cell_px)
            strip = np.asarray(cv2.resize(strip, size, interpolation=cv2.INTER_AREA), np.uint8)
        alpha = _blow_up(np.where(present[row], _OPAQUE, 0).astype(np.uint8), cell_px)
        return np.dstack([strip, alpha])

    return Layer("tissue", "Tissue", {"kind": "rgb"}, paint_row)


def _value_layer(
    content: PatientMap,
    name: str,
    title: str,
    values: NDArray[np.float32],
    *,
    top: float = 1.0,
) -> Layer:
    """Return a layer of one value a patch, its colours on the same scale for every patient."""
    colours = COLORMAPS[name]
    grid = _paint(content.grid(values), colours, top)  # (rows, cols, 4)

    def paint_row(row: int, cell_px: int) -> NDArray[np.uint8]:
        return _blow_up(grid[row], cell_px)

    return Layer(name, title, _colour_scale(colours, top), paint_row)


def _cam_layer(content: PatientMap, cam: NDArray[np.float32]) -> Layer:
    top, colours = robust_max(cam), COLORMAPS["cam"]
    index = scatter_to_grid(np.arange(len(cam)), content.row_col, shape=content.shape, fill=-1)
    _, height, width = cam.shape

    def paint_row(row: int, cell_px: int) -> NDArray[np.uint8]:
        blocks = _paint(cam[index[row]], colours, top)  # (cols, h, w, 4)
        blocks[index[row] < 0] = _NO_PATCH
        # Of each px the part of the CAM that its centre lies in: nothing is blended.
        down = ((np.arange(cell_px) + 0.5) * height / cell_px).astype(int)
        across = ((np.arange(cell_px) + 0.5) * width / cell_px).astype(int)
        blocks = blocks[:, down][:, :, across]  # (cols, cell_px, cell_px, 4)
        return blocks.transpose(1, 0, 2, 3).reshape(cell_px, -1, 4)

    title = f"{content.cam_method} of {content.cam_class}, raw, one scale for the patient"
    scale = _colour_scale(colours, top) | {"top_percentile": TOP_PERCENTILE}
    return Layer("cam", title, scale, paint_row)


def _label_layer(content: PatientMap) -> Layer:
    colours = np.array([(*colour, _OPAQUE) for colour in LABEL_COLOURS], np.uint8)
    grid = colours[content.label_grid()]
    grid[~_present(content)] = _NO_PATCH
    names = (*content.class_names, "unknown")

    def paint_row(row: int, cell_px: int) -> NDArray[np.uint8]:
        return _blow_up(grid[row], cell_px)

    scale = {
        "kind": "classes",
        "classes": [
            {"label": label, "name": name, "colour": list(colour)}
            for label, name, colour in zip((0, 1, -1), names, LABEL_COLOURS, strict=True)
        ],
    }
    return Layer("labels", "Labels", scale, paint_row)


def _present(content: PatientMap) -> NDArray[np.bool_]:
    here = np.ones(len(content.row_col), bool)
    return scatter_to_grid(here, content.row_col, shape=content.shape, fill=False)


def _paint(values: NDArray[np.float32], colours: str, top: float) -> NDArray[np.uint8]:
    """Return values as colours, red, green, blue and alpha in the last axis, NaN transparent."""
    table = mpl.colormaps[colours](np.linspace(0, 1, 256), bytes=True)  # (256, 4)
    share = np.nan_to_num(np.clip(values / top, 0, 1), nan=0.0)
    painted = table[(share * 255).round().astype(np.uint8)]
    painted[np.isnan(values)] = _NO_PATCH
    return painted


def _colour_scale(colours: str, top: float) -> dict[str, Any]:
    return {"kind": "colour map", "colour_map": f"matplotlib {colours}", "low": 0.0, "high": top}


def _blow_up(cells: NDArray[np.uint8], cell_px: int) -> NDArray[np.uint8]:
    """Return a row of cells, shape (cols, ...), as squares of px, (side, cols * side, ...)."""
    return np.repeat(np.repeat(cells[None], cell_px, axis=0), cell_px, axis=1)
