"""Small maps with known values."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap, SlideView


def small_map(row_col: object, probability: object, **changes: object) -> PatientMap:
    """Return a pack's map of patches of 50 px at 4 um/px; unless changed, without an image."""
    row_col = np.array(row_col, np.int32)
    probability = np.array(probability, np.float32)
    num = len(row_col)
    logit = np.log(np.clip(probability, 1e-6, 1 - 1e-6) / np.clip(1 - probability, 1e-6, 1))
    patch_px = int(changes.pop("patch_px", 50))  # type: ignore[call-overload]
    content = PatientMap(
        patient="P1",
        source="pack",
        class_names=("non-IDC", "IDC"),
        patch_px=patch_px,
        mpp=4.0,
        mpp_source="assumed",
        threshold=0.5,
        temperature=1.0,
        model={"architecture": "cnn"},
        provenance={},
        coords=row_col[:, ::-1] * patch_px,
        row_col=row_col,
        logit=np.stack([np.zeros(num), logit], axis=1).astype(np.float32),
        probability=probability,
        label=np.full(num, -1, np.int8),
    )
    return replace(content, **changes)  # type: ignore[arg-type]


def on_slide(content: PatientMap, mpp: float) -> PatientMap:
    """Return the same map as one of a slide of ``mpp`` um per level-0 px."""
    side = content.patch_px * content.mpp / mpp
    rows, cols = content.shape
    slide = SlideView(
        name="a.svs",
        mpp=mpp,
        width=int(cols * side),
        height=int(rows * side),
        thumbnail=np.zeros((2, 2, 3), np.uint8),
        tissue=np.ones((2, 2), bool),
    )
    coords = np.round(content.row_col[:, ::-1] * side).astype(np.int32)
    return replace(content, source="slide", slide=slide, coords=coords)


def full_grid(rows: int, cols: int) -> np.ndarray:
    """Return every cell of a grid, row by row."""
    return np.argwhere(np.ones((rows, cols), bool)).astype(np.int32)


def stored(content: PatientMap, folder: Path) -> Path:
    """Write a map into a folder and return its file."""
    path = folder / f"{content.patient}.h5"
    write_map(path, content)
    return path
