"""Small maps with known values."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests import small_maps
from wsi_idc.export.layers import layer_pictures
from wsi_idc.export.png import write_legend
from wsi_idc.maps.map_reader import open_image
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap, SlideView


def small_map(row_col: Any, probability: Any, **changes: Any) -> PatientMap:
    """Return a map of a pack without image, CAM and labels, unless ``changes`` adds them."""
    row_col = np.array(row_col, np.int32)
    probability = np.array(probability, np.float32)
    num, patch_px = len(row_col), changes.get("patch_px", 50)
    logit = np.log(np.clip(probability, 1e-6, 1 - 1e-6) / np.clip(1 - probability, 1e-6, 1))
    defaults = {
        "patch_px": patch_px,
        "coords": row_col[:, ::-1] * patch_px,
        "logit": np.stack([np.zeros(num), logit], axis=1).astype(np.float32),
        "probability": probability,
        "label": np.full(num, -1, np.int8),
        "cam": None,
        "patches": None,
    }
    return small_maps.small_map(row_col, **defaults | changes)


def measured_map() -> PatientMap:
    """Return a map of two patches with every number, one of them NaN."""
    return small_map(
        [[0, 1], [1, 0]],
        [0.25, 0.75],
        label=np.array([-1, 1], np.int8),
        cam=np.array([[[0, 1], [2, 3]], [[0, 0], [0, 0.5]]], np.float32),
        uncertainty=np.array([0.125, np.nan], np.float32),
        unsmoothed=np.array([0.5, 0.625], np.float32),
        unsmoothed_threshold=0.5,
        smoothing={"sigma_um": 150.0},
    )


def on_slide(patient_map: PatientMap, mpp: float) -> PatientMap:
    """Return the same map as one of a slide of ``mpp`` um per level-0 px."""
    side = patient_map.patch_px * patient_map.mpp / mpp
    rows, cols = patient_map.shape
    thumbnail, tissue = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool)
    slide = SlideView(
        "a.svs", mpp, math.ceil(cols * side), math.ceil(rows * side), thumbnail, tissue
    )
    coords = np.round(patient_map.row_col[:, ::-1] * side).astype(np.int32)
    return replace(patient_map, source="slide", slide=slide, coords=coords)


def full_grid(rows: int, cols: int) -> np.ndarray:
    """Return every cell of a grid, row by row."""
    return np.argwhere(np.ones((rows, cols), bool)).astype(np.int32)


def stored(patient_map: PatientMap, folder: Path) -> Path:
    """Write a map into a folder and return its file."""
    path = folder / f"{patient_map.patient}.h5"
    write_map(path, patient_map)
    return path


def write_all(
    patient_map: PatientMap, folder: Path, write: Callable[..., None], suffix: str
) -> dict[str, Path]:
    """Write each layer of a map, and the legend, and return the files of the layers."""
    with open_image(stored(patient_map, folder)) as read_rows:
        layers = layer_pictures(patient_map, read_rows)
        files = {folder / f"{layer.name}.{suffix}": layer for layer in layers}
        for path, layer in files.items():
            write(patient_map, layer, path)
        write_legend(patient_map, files, folder / "layers.json")
    return {layer.name: path for path, layer in files.items()}
