"""Small maps with known values."""

from pathlib import Path
from typing import Any

import numpy as np

from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap, SlideView

CELLS = [(0, 1), (1, 0), (1, 1), (1, 2)]
SHADES = (40, 100, 160, 220)  # grays of the four patches


def small_map(cells: Any = CELLS, **changes: Any) -> PatientMap:
    """Return a map of 10 px patches, four on a grid of 2 x 3 cells by default."""
    row_col, num = np.array(cells, np.int32), len(cells)
    shades = np.resize(np.array(SHADES, np.uint8), num)
    defaults: dict[str, Any] = {
        "patient": "P1",
        "source": "pack",
        "class_names": ("non-IDC", "IDC"),
        "patch_px": 10,
        "mpp": 4.0,
        "mpp_source": "assumed",
        "threshold": 0.5,
        "temperature": 1.0,
        "model": {"architecture": "cnn", "role_of_patient": "test"},
        "provenance": {},
        "coords": row_col[:, ::-1] * 10,
        "row_col": row_col,
        "logit": np.zeros((num, 2), np.float32),
        "probability": np.resize(np.array([0, 0.25, 0.5, 1], np.float32), num),
        "label": np.resize(np.array([0, 0, 1, 1], np.int8), num),
        "cam": np.resize(np.array([[[0, 1], [2, 4]]], np.float32), (num, 2, 2)),
        "cam_layer": "features",
        "patches": np.broadcast_to(shades[:, None, None, None], (num, 10, 10, 3)),
    }
    return PatientMap(**(defaults | changes))


def slide_view() -> SlideView:
    """Return a slide of 4 x 8 mm with a thumbnail of 10 x 20 px and tissue in the middle."""
    tissue = np.zeros((20, 10), bool)
    tissue[5:15, 2:8] = True
    thumbnail = np.where(tissue[..., None], 120, 240).astype(np.uint8).repeat(3, axis=2)
    return SlideView("s.svs", 0.5, 8000, 16000, thumbnail, tissue)


def written(folder: Path, **changes: Any) -> Path:
    """Write a small map and return its path."""
    path = folder / "P1.h5"
    write_map(path, small_map(**changes))
    return path
