"""Layers of a patient's page, and the arrays that the page draws.

Coordinates are in mm, and y increases downwards. The origin is the upper left corner of the grid
after ``crop_to_patches``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_idc.geometry.grid import mosaic
from wsi_idc.maps.layers import (
    OPTIONAL_VALUES,
    Layer,
    crop_to_patches,
    has_labels,
    layers_of,
    robust_max,
)
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import (
    CALLED_COLOR,
    COLORMAPS,
    MASK_COLOR,
    OUTCOME_COLORS,
    OUTCOME_NAMES,
    SEE_THROUGH,
)
from wsi_idc.plotting.raster import layer_table

_MAX_LEVEL = 255
TRUTH_COLOR = "#ffffff"


def hex_colors(table: NDArray[np.uint8]) -> tuple[str, ...]:
    """Convert colors, shape (N, 4), to texts such as "#ff0000ff"."""
    return tuple("#{:02x}{:02x}{:02x}{:02x}".format(*color) for color in table.tolist())


PALETTES = {name: hex_colors(layer_table(name)) for name in COLORMAPS}
_MAX_CAM_SIDE = 16
_NUM_BINS = 40


@dataclass(frozen=True)
class PageLayer:
    """A layer of a patient's page, its legend, and the initial state of its controls.

    Attributes:
        name: Name of the layer. The names of its controls contain this name.
        title: Text of the checkbox of the layer.
        is_shown: Whether the layer is visible at the start.
        opacity: Opacity at the start; None for lines.
        vmax: Value at the right end of the color bar.
        palette: Colors of the color bar; empty if the legend has ``keys`` and no color bar.
        keys: Pairs of a color and its meaning, for a legend without a color bar.
    """

    name: str
    title: str
    is_shown: bool = False
    opacity: float | None = 0.5
    vmax: float = 1.0
    palette: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()

    @property
    def gradient(self) -> str:
        """Color bar as a CSS gradient."""
        stops = np.linspace(0, len(self.palette) - 1, 16).astype(int)
        return f"linear-gradient(90deg, {', '.join(self.palette[stop] for stop in stops)})"


def page_layers(patient_map: PatientMap, *, has_tissue: bool) -> list[PageLayer]:
    """Return the layers of a patient's page, in the order of the controls on the page."""
    keys = ((CALLED_COLOR, ""),)
    lines = [PageLayer("regions", "Called IDC", is_shown=True, opacity=None, keys=keys)]
    if has_labels(patient_map):
        outcome_keys = tuple(zip(OUTCOME_COLORS.values(), OUTCOME_NAMES, strict=True))
        lines += [
            PageLayer("truth", "Labelled IDC", opacity=None, keys=((TRUTH_COLOR, ""),)),
            PageLayer("errors", "Errors", keys=outcome_keys),
        ]
    if patient_map.slide is not None:
        lines.append(PageLayer("mask", "Tissue mask", opacity=None, keys=((MASK_COLOR, ""),)))
    layers = layers_of(patient_map, has_tissue=has_tissue)[::-1]
    layers.sort(key=lambda layer: layer.name != "labels")  # labels first, after the errors
    return [*lines, *map(_page_layer, layers)]


def _page_layer(layer: Layer) -> PageLayer:
    if layer.values is None:
        return PageLayer(layer.name, layer.title, is_shown=True, opacity=1.0)
    if layer.classes:
        keys = tuple(
            (layer.colors[value], text)
            for value, text in layer.legend_texts().items()
            if layer.counts.get(value, (layer.values == value).any())
        )
        return PageLayer(layer.name, layer.title, keys=keys)
    return PageLayer(
        layer.name,
        layer.title if layer.name == "cam" else layer.name.capitalize(),
        is_shown=layer.name == "probability",
        opacity=0.7 if layer.name in SEE_THROUGH else 0.5,
        vmax=layer.vmax,
        palette=PALETTES[layer.name],
    )


def slide_corner_mm(patient_map: PatientMap) -> tuple[float, float]:
    """Return x and y of the top left corner of the slide in mm; they are 0 or negative.

    x and y are relative to the upper left corner of the grid after ``crop_to_patches``.
    """
    cropped = crop_to_patches(patient_map)
    corners = cropped.coords - cropped.row_col[:, ::-1] * cropped.cell_size_level0
    margin = cropped.origin_px * cropped.mpp / cropped.level0_mpp
    left, top = -(np.median(corners, axis=0) + margin) * cropped.level0_mpp / 1000
    return float(left), float(top)


def crop_image(image: NDArray[np.uint8], patient_map: PatientMap) -> NDArray[np.uint8]:
    """Remove the pixel rows above all patches, and the pixel columns left of all patches."""
    top, left = patient_map.row_col.min(axis=0) * (len(image) // patient_map.shape[0])
    return image[top:, left:]


def patch_columns(patient_map: PatientMap) -> dict[str, NDArray]:
    """Return the columns of the table of patches. Each column has one value per patch."""
    cropped = crop_to_patches(patient_map)
    row, col = cropped.row_col.T
    cell_mm = patient_map.cell_px * patient_map.mpp / 1000
    columns: dict[str, NDArray] = {
        "row": patient_map.row_col[:, 0],
        "col": patient_map.row_col[:, 1],
        "x": patient_map.coords[:, 0],
        "y": patient_map.coords[:, 1],
        "x_mm": ((col + 0.5) * cell_mm).astype(np.float32),
        "y_mm": ((row + 0.5) * cell_mm).astype(np.float32),
        "cell": (row * cropped.shape[1] + col).astype(np.int32),
        "on_slide": patient_map.fraction_on_slide,
        "probability": patient_map.probability,
        "label": patient_map.label,
        "is_counted": patient_map.is_counted.astype(np.uint8),
    }
    if patient_map.cam is not None:
        columns["cam_max"] = patient_map.cam.max(axis=(1, 2))
    for name in OPTIONAL_VALUES:
        if (values := getattr(patient_map, name)) is not None:
            columns[name] = values
    if patient_map.flags is not None:
        columns["flags"] = patient_map.flags
    return columns


def outcomes(label: NDArray[np.int8], called: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the outcome of each patch as a code: 0 unknown label, 1 TP, 2 FP, 3 FN, 4 TN."""
    return np.where(label < 0, 0, 2 - label + 2 * ~called).astype(np.uint8)


def downscale_cams(cam: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shrink CAMs to at most 16 x 16 values; each value is the mean of a block of values.

    ``cam`` has the shape (N, h, w).
    """
    for axis in (1, 2):
        side = cam.shape[axis]
        if side > _MAX_CAM_SIDE:
            starts = np.arange(_MAX_CAM_SIDE) * side // _MAX_CAM_SIDE
            sums = np.add.reduceat(cam, starts, axis=axis)
            counts = np.diff(np.append(starts, side))
            cam = (sums / (counts[:, None] if axis == 1 else counts)).astype(np.float32)
    return cam


def cam_levels(patient_map: PatientMap) -> NDArray[np.uint8]:
    """Join the CAMs of a map to one image of integer levels.

    Returns:
        Levels, shape (rows * h, cols * w). The rows and cols are those of the grid after
        ``crop_to_patches``. Level 0 means a cell without a patch, level 1 means a CAM value of 0,
        and level 255 means a CAM value of ``robust_max`` or more.
    """
    cropped, cams = crop_to_patches(patient_map), patient_map.cell_cams()
    scaled = np.clip(np.nan_to_num(downscale_cams(cams)) / robust_max(cams), 0, 1)
    levels = (1 + np.round(scaled * (_MAX_LEVEL - 1))).astype(np.uint8)
    return mosaic(levels, cropped.row_col, shape=cropped.shape, fill=0)


def histogram(values: NDArray[np.float32], label: NDArray[np.int8]) -> dict[str, NDArray]:
    """Compute the histogram of values from 0 to 1 as bars stacked by label.

    Args:
        values: Value of each patch, shape (N,).
        label: Label of each patch, shape (N,).

    Returns:
        Arrays by name. ``left`` and ``right`` are the edges of each bin. For each label L that
        occurs, ``bottom_L`` and ``top_L`` are the ends of the bars, in fractions of all patches.
    """
    edges = np.linspace(0, 1, _NUM_BINS + 1)
    bars: dict[str, NDArray] = {"left": edges[:-1], "right": edges[1:]}
    bottom = np.zeros(_NUM_BINS)
    for code in (1, 0, -1):
        members = label == code
        if members.any():
            counts, _ = np.histogram(values[members], edges)
            top = bottom + counts / len(label)
            bars |= {f"bottom_{code}": bottom, f"top_{code}": top}
            bottom = top
    return bars
