"""A map whose areas and metrics are computed by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.small_maps import small_map
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap

PROBABILITY = (0.9, 0.8, 0.2, 0.1, 0.7)
LABEL = (1, 0, 1, 0, -1)
ROW_COL = ((0, 1), (1, 2), (1, 3), (2, 1), (3, 3))
EVIL = "<img src=x onerror=alert(1)>"


def hand_map(**changes: Any) -> PatientMap:
    """Return a map of five patches on 4 x 4 cells of 0.04 mm2; its first column is empty.

    At 0.5 three patches are called IDC: the first two, which touch at a corner, and the last one,
    which touches none. The four labelled patches are one true and one false positive, one true and
    one false negative.
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
    """Write that map as ``PATIENT.h5`` and return the file."""
    patient_map = hand_map(**changes)
    path = folder / f"{patient_map.patient}.h5"
    write_map(path, patient_map)
    return path


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
        smoothed=probability,
        smoothing={"threshold": 0.4},
        patches=patches,
    )
