"""Layers of a map for the page of the viewer: a JSON record, values of patches, and pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from wsi_idc.maps.layers import OPTIONAL_VALUES, Layer, layers_of
from wsi_idc.maps.map_reader import read_map
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import (
    CALLED_COLOR,
    MASK_COLOR,
    OUTCOME_COLORS,
    OUTCOME_NAMES,
)
from wsi_idc.plotting.raster import Pixels, colorize, downscale, layer_table

# Largest side of a picture of CAMs: browsers draw at most 16,384 px per side.
_MAX_PICTURE_SIDE_PX = 8192
_OPAQUE = 255


@dataclass(frozen=True)
class MapLayers:
    """Layers of a map.

    Attributes:
        record: Description of the map and its layers, and the names of the columns of ``values``,
            as JSON values.
        values: Bytes of a table with N patches, shape (columns, N), little-endian float32.
        pictures: PNG pictures of the layers "cam" and "tissue", if the map has these layers.
    """

    record: dict[str, Any]
    values: bytes
    pictures: dict[str, bytes]


def map_layers(path: Path) -> MapLayers:
    """Read a map file and return its layers; raise MapError if the file cannot be used."""
    patient_map = read_map(path)
    columns = _columns(patient_map)
    layers, pictures = [], {}
    for layer in layers_of(patient_map, has_tissue=False):
        layers.append(_layer_record(layer))
        if layer.name == "cam":
            pictures["cam"] = _png(_paint_cams(patient_map, layer))
    if (patient_map.label >= 0).any():
        layers.append(
            _keys("errors", "Errors", zip(OUTCOME_COLORS.values(), OUTCOME_NAMES, strict=True))
        )
    layers.append(_keys("called", "Called IDC", [(CALLED_COLOR, "outline")]))
    if patient_map.slide is not None:
        mask = patient_map.slide.tissue
        pictures["tissue"] = _png(_paint_mask(mask))
        layers.append(_keys("tissue", "Tissue mask", [(MASK_COLOR, "outline")]))
    rows, cols = patient_map.shape
    record = {
        "name": patient_map.map_name,
        "rows": rows,
        "cols": cols,
        "cellUm": patient_map.cell_px * patient_map.mpp,
        "threshold": patient_map.threshold,
        "role": str(patient_map.model.get("role_of_patient") or ""),
        "architecture": str(patient_map.model.get("architecture") or ""),
        "checkpoint": str(patient_map.model.get("checkpoint") or ""),
        "resolution": patient_map.resolution,
        "caution": patient_map.caution,
        "flagBits": dict(patient_map.flag_bits),
        "excludesFlagged": patient_map.exclude_flagged,
        "classNames": list(patient_map.class_names),
        "columns": list(columns),
        "layers": layers,
    }
    values = np.stack([column.astype("<f4") for column in columns.values()])
    return MapLayers(record, values.tobytes(), pictures)


def _columns(patient_map: PatientMap) -> dict[str, NDArray]:
    columns: dict[str, NDArray] = {
        "row": patient_map.row_col[:, 0],
        "col": patient_map.row_col[:, 1],
        "x": patient_map.coords[:, 0],
        "y": patient_map.coords[:, 1],
        "labels": patient_map.label,
        "onSlide": patient_map.fraction_on_slide,
        "probability": patient_map.probability,
    }
    for name in OPTIONAL_VALUES:
        if (values := getattr(patient_map, name)) is not None:
            columns[name] = values
    if patient_map.flags is not None:
        columns["flags"] = patient_map.flags
    return columns


def _layer_record(layer: Layer) -> dict[str, Any]:
    if layer.classes:
        texts = layer.legend_texts()
        return _keys(layer.name, layer.title, [(layer.colors[v], t) for v, t in texts.items()])
    return {
        "name": layer.name,
        "title": layer.title,
        "note": layer.note,
        "vmax": layer.vmax,
        "isOpen": layer.is_open,
        "colors": layer_table(layer.name).ravel().tolist(),
    }


def _keys(name: str, title: str, keys: Any) -> dict[str, Any]:
    return {"name": name, "title": title, "keys": [list(key) for key in keys]}


def _paint_cams(patient_map: PatientMap, layer: Layer) -> Pixels:
    """Paint the CAMs of all patches in one RGBA picture, with at most 8192 px per side.

    The shape is (rows * h, cols * w, 4).
    """
    rows, cols = patient_map.shape
    table, strips = layer_table(layer.name), []
    for strip in patient_map.cam_strips():  # one row of the grid at a time, to limit the memory
        height = min(strip.shape[0], max(1, _MAX_PICTURE_SIDE_PX // rows))
        width = min(strip.shape[1] // cols, max(1, _MAX_PICTURE_SIDE_PX // cols)) * cols
        values = np.asarray(downscale(strip, height=height, width=width) / layer.vmax, np.float32)
        strips.append(colorize(values, table))
    return np.concatenate(strips)


def _paint_mask(mask: NDArray[np.bool_]) -> Pixels:
    """Paint the edge of the tissue. All other px are transparent. The shape is (h, w, 4)."""
    inside = mask.astype(np.uint8)
    edge = inside - cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=0)
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[edge > 0] = (*ImageColor.getrgb(MASK_COLOR), _OPAQUE)
    return picture


def _png(picture: Pixels) -> bytes:
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))
    return data.tobytes()
