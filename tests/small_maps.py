"""Small maps with known values, and one whose areas and metrics are computed by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsi_idc.geometry.bounds import Bounds
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_file import write_patient_file
from wsi_idc.maps.patient_map import PatientMap, SlideView

CELLS = [(0, 1), (1, 0), (1, 1), (1, 2)]
SHADES = (40, 100, 160, 220)  # grays of the four patches
PROBABILITY = (0.9, 0.8, 0.2, 0.1, 0.7)
LABEL = (1, 0, 1, 0, -1)
ROW_COL = ((0, 1), (1, 2), (1, 3), (2, 1), (3, 3))
EVIL = "<img src=x onerror=alert(1)>"


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
    bounds = Bounds(1000, 3000, 6000, 10000)
    return SlideView("s.svs", 0.5, 8000, 16000, thumbnail, tissue, bounds=bounds)


def edge_map() -> PatientMap:
    """Return a map of 2 x 2 patches of 200 um on a slide of 300 x 250 um: the last ones jut out.

    Their cells have 0.04, 0.02, 0.01 and 0.005 mm2 on the slide. All but the first are called IDC.
    """
    picture, tissue = np.full((2, 2, 3), 200, np.uint8), np.ones((2, 2), bool)
    cells = [(0, 0), (0, 1), (1, 0), (1, 1)]
    return small_map(
        cells,
        patch_px=50,
        mpp_source="model",
        source="slide",
        coords=np.array(cells, np.int32)[:, ::-1] * 400,
        probability=np.array([0.1, 0.9, 0.9, 0.9], np.float32),
        patches=None,
        slide=SlideView("s.svs", 0.5, 600, 500, picture, tissue, "given"),
    )


def written(folder: Path, **changes: Any) -> Path:
    """Write a small map and return its path."""
    path = folder / "P1.h5"
    write_map(path, small_map(**changes))
    return path


def hand_map(**changes: Any) -> PatientMap:
    """Return a map of five patches on 4 x 4 cells of 0.04 mm2; its first column is empty.

    At 0.5 three patches are called IDC: the first two, which touch only at a corner, and the last
    one, which touches none. The four labelled patches are one true and one false positive, one
    true and one false negative.
    """
    rng = np.random.default_rng(5)
    fields: dict[str, Any] = {
        "patch_px": 50,
        "temperature": 1.25,
        "model": {
            "architecture": "cnn",
            "checkpoint": "best.pt",
            "sha256": "0123456789abcdef" * 4,
            "role_of_patient": "test",
        },
        "provenance": {"created": "2026-01-02", "identity": {"data": "fd" * 32}},
        "coords": np.array(ROW_COL, np.int32)[:, ::-1] * 50,
        "probability": np.array(PROBABILITY, np.float32),
        "label": np.array(LABEL, np.int8),
        "cam": np.arange(5 * 6, dtype=np.float32).reshape(5, 2, 3),
        "patches": rng.integers(0, 255, (5, 50, 50, 3), dtype=np.uint8),
    }
    return small_map(list(ROW_COL), **fields | changes)


def write_hand_map(folder: Path, **changes: Any) -> Path:
    """Write that map as ``PATIENT.h5`` or ``PATIENT/SLIDE.h5`` and return the file."""
    patient_map = hand_map(**changes)
    path = map_path(folder, patient_map.map_name)
    write_map(path, patient_map)
    return path


def three_patches(**changes: Any) -> PatientMap:
    """Return a map of the first three patches of ``hand_map``; one patch is called IDC at 0.5."""
    patient_map = hand_map(probability=np.array([0.1, 0.1, 0.9, 0, 0], np.float32), **changes)
    columns = ("coords", "row_col", "logit", "probability", "label", "cam", "patches")
    return replace(patient_map, **{name: getattr(patient_map, name)[:3] for name in columns})


def write_two_slides(folder: Path, patient: str = "P1") -> list[Path]:
    """Write two slides of a patient, ``hand_map`` and ``three_patches``, and the patient file."""
    paths = [write_hand_map(folder, patient=patient, slide_name="a")]
    paths.append(map_path(folder, f"{patient}/b"))
    write_map(paths[1], three_patches(patient=patient, slide_name="b"))
    write_patient_file(map_path(folder, patient))
    return paths


def big_map(num_patches: int, *, cols: int) -> PatientMap:
    """Return a map of noise with all optional values, on ``cols`` columns without gaps."""
    rng = np.random.default_rng(6)
    row_col = np.stack(np.divmod(np.arange(num_patches), cols), axis=1).astype(np.int32)
    probability = rng.random(num_patches, dtype=np.float32)
    # Noise compresses worst as JPEG; half of the contrast is still more than in any tissue.
    patches = rng.integers(64, 192, (num_patches, 50, 50, 3), dtype=np.uint8)
    return hand_map(
        coords=row_col[:, ::-1] * 50,
        row_col=row_col,
        logit=np.zeros((num_patches, 2), np.float32),
        probability=probability,
        label=rng.integers(0, 2, num_patches).astype(np.int8),
        cam=rng.random((num_patches, 14, 14), dtype=np.float32),
        uncertainty=rng.random(num_patches, dtype=np.float32) / 10,
        unsmoothed=probability,
        unsmoothed_threshold=0.4,
        patches=patches,
    )
