"""Paint the layers of a map as pictures."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import ImageColor

from wsi_idc.geometry.grid import scatter_to_grid
from wsi_idc.maps.layers import TOP_PERCENTILE, Layer, layers_of
from wsi_idc.maps.map_reader import ReadRows
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import LABEL_COLORS
from wsi_idc.plotting.raster import CLEAR, Pixels, colorize, downscale

# Largest uncertainty: the standard deviation of numbers from 0 to 1 is at most 0.5.
MAX_DEVIATION = 0.5
# Colors in the order of the labels 0, 1, -1: LABEL_RGB[-1] is the color of an unknown label.
LABEL_RGB = tuple(ImageColor.getrgb(LABEL_COLORS[label])[:3] for label in (0, 1, -1))
_OPAQUE, _NUM_VALUES = 255, 256


class LayerPicture:
    """Picture of a layer; cells without a patch are transparent.

    Attributes:
        name: Name of the layer in file names.
        title: Title of the layer in legends and file descriptions.
    """

    def __init__(self, layer: Layer, patient_map: PatientMap, read_rows: ReadRows | None) -> None:
        self.name = layer.name
        self.title = f"{layer.title}, {layer.note}" if layer.note else layer.title
        self._layer, self._read_rows, self._tissue_px = layer, read_rows, patient_map.cell_px
        row_col, shape = patient_map.row_col, patient_map.shape
        self._patches = scatter_to_grid(np.arange(len(row_col)), row_col, shape=shape, fill=-1)

    @property
    def scale(self) -> Mapping[str, Any]:
        """Meaning of the colors, as JSON values."""
        layer = self._layer
        if layer.values is None:
            return {"kind": "rgb"}
        if layer.classes:
            classes = [
                {"label": value, "name": name, "colour": list(self._rgb(value))}
                for value, name in layer.classes.items()
            ]
            return {"kind": "classes", "classes": classes}
        colormap = f"matplotlib {layer.colormap}"
        scale = {"kind": "colour map", "colour_map": colormap, "low": 0.0, "high": layer.vmax}
        return scale | ({"top_percentile": TOP_PERCENTILE} if layer.name == "cam" else {})

    def paint_row(self, row: int, cell_px: int) -> Pixels:
        """Paint a row of the grid.

        Args:
            row: Number of the row, from 0.
            cell_px: Side of a cell in px.

        Returns:
            Red, green, blue and alpha, shape (cell_px, cols * cell_px, 4). Cells without a patch
            are transparent white.
        """
        patches, values = self._patches[row], self._layer.values
        if values is None:
            assert self._read_rows is not None
            strip = self._read_rows(row * self._tissue_px, (row + 1) * self._tissue_px)
            # Each row of cells is shrunk separately, so that no cell is shifted.
            strip = downscale(strip, height=cell_px, width=len(patches) * cell_px)
            alpha = np.where(patches < 0, 0, _OPAQUE).astype(np.uint8)
            return np.dstack([strip, np.tile(alpha.repeat(cell_px), (cell_px, 1))])
        blocks = self._colors(values[patches])  # (cols, 4), or (cols, h, w, 4) for a CAM
        blocks[patches < 0] = CLEAR
        if blocks.ndim == 2:
            return np.tile(blocks.repeat(cell_px, axis=0), (cell_px, 1, 1))
        # Each px takes the CAM value at the center of the px, so that CAM values are not mixed.
        down, across = (
            ((np.arange(cell_px) + 0.5) * side / cell_px).astype(int) for side in blocks.shape[1:3]
        )
        blocks = blocks[:, down][:, :, across]  # (cols, cell_px, cell_px, 4)
        return blocks.transpose(1, 0, 2, 3).reshape(cell_px, -1, 4)

    def _rgb(self, value: int) -> tuple[int, ...]:
        return ImageColor.getrgb(self._layer.colors[value])[:3]

    def _colors(self, values: Any) -> Pixels:
        if self._layer.classes:
            colors = np.tile(np.array(CLEAR, np.uint8), (_NUM_VALUES, 1))
            for value in self._layer.classes:
                colors[value] = (*self._rgb(value), _OPAQUE)  # -1 is the last color
            return colors[values]
        table = mpl.colormaps[self._layer.colormap](np.linspace(0, 1, 256), bytes=True)
        return colorize(values / self._layer.vmax, table)


def layer_pictures(patient_map: PatientMap, read_rows: ReadRows | None) -> list[LayerPicture]:
    """Return the layers of a map as pictures; ``read_rows`` reads rows of the stitched tissue.

    The color scale of the CAM depends on the map. In all other layers, a color means the same value
    in all maps.
    """
    layers = layers_of(patient_map, has_tissue=read_rows is not None, uncertainty_max=MAX_DEVIATION)
    return [LayerPicture(layer, patient_map, read_rows) for layer in layers]
