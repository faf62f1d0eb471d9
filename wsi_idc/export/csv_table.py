"""Numbers of the patches, for the CSV and the measurements in QuPath."""

from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.files import write_bytes
from wsi_idc.export.coordinates import grid_transform
from wsi_idc.maps.patient_map import PatientMap


def patch_table(patient_map: PatientMap) -> pd.DataFrame:
    """Return the numbers of a map, one row a patch.

    Columns: ``prob_CLASS`` and ``logit_CLASS`` of both classes, ``label`` (-1 unknown), and if
    the map has them ``uncertainty``, ``smoothed``, ``cam_mean`` and ``cam_max``.
    """
    other, idc = patient_map.class_names
    columns = {
        f"prob_{other}": 1 - patient_map.probability.astype(np.float64),
        f"prob_{idc}": patient_map.probability.astype(np.float64),
        f"logit_{other}": patient_map.logit[:, 0],
        f"logit_{idc}": patient_map.logit[:, 1],
        "label": patient_map.label,
    }
    if patient_map.uncertainty is not None:
        columns["uncertainty"] = patient_map.uncertainty
    if patient_map.smoothed is not None:
        columns["smoothed"] = patient_map.smoothed
    if patient_map.cam is not None:
        columns["cam_mean"] = patient_map.cam.mean(axis=(1, 2))
        columns["cam_max"] = patient_map.cam.max(axis=(1, 2))
    return pd.DataFrame(columns)


def write_csv(patient_map: PatientMap, out: Path) -> None:
    """Write one line a patch: WSInfer's columns, the cell, then the other numbers.

    WSInfer's columns are ``minx``, ``miny``, ``width``, ``height`` as integers in level-0
    px, where neighboring patches share an edge, and ``prob_CLASS``.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    transform = grid_transform(patient_map)
    first = transform.points(patient_map.row_col[:, ::-1]).round().astype(np.int64)
    last = transform.points(patient_map.row_col[:, ::-1] + 1).round().astype(np.int64)
    numbers = patch_table(patient_map)
    corners = pd.DataFrame(
        np.hstack([first, last - first]), columns=["minx", "miny", "width", "height"]
    )
    cells = pd.DataFrame(patient_map.row_col, columns=["row", "col"])
    num_classes = len(patient_map.class_names)
    probabilities, others = numbers.iloc[:, :num_classes], numbers.iloc[:, num_classes:]
    table = pd.concat([corners, probabilities, cells, others], axis=1)
    write_bytes(out, table.to_csv(index=False, float_format="%.7g").encode())
