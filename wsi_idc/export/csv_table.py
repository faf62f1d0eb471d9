"""Write the numbers of a map as CSV, one line per patch."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.files import write_bytes
from wsi_idc.maps.coordinates import grid_transform
from wsi_idc.maps.layers import OPTIONAL_VALUES
from wsi_idc.maps.patient_map import PatientMap


def patch_table(patient_map: PatientMap) -> pd.DataFrame:
    """Return a table of the numbers of a map, one row per patch.

    Each table has the columns ``prob_CLASS`` and ``logit_CLASS`` of both classes, and ``label``
    (-1 if the label is unknown). The columns with the names in ``OPTIONAL_VALUES``, ``cam_mean``
    and ``cam_max`` are present if the map has these values. If the map has quality flags, each flag
    has a column ``flag_NAME`` with the values 0 and 1.
    """
    other, idc = patient_map.class_names
    columns = {
        f"prob_{other}": 1 - patient_map.probability.astype(np.float64),
        f"prob_{idc}": patient_map.probability.astype(np.float64),
        f"logit_{other}": patient_map.logit[:, 0],
        f"logit_{idc}": patient_map.logit[:, 1],
        "label": patient_map.label,
    }
    return pd.DataFrame(columns | optional_columns(patient_map))


def optional_columns(patient_map: PatientMap) -> dict[str, NDArray]:
    """Return the columns of ``patch_table`` that are present only if the map has the values."""
    columns: dict[str, NDArray] = {}
    for name in OPTIONAL_VALUES:
        if (values := getattr(patient_map, name)) is not None:
            columns[name] = values
    if (flags := patient_map.flags) is not None:
        for name, bit in patient_map.flag_bits.items():
            columns[f"flag_{name}"] = np.where(flags & bit, 1, 0)
    if patient_map.cam is not None:
        columns["cam_mean"] = patient_map.cam.mean(axis=(1, 2))
        columns["cam_max"] = patient_map.cam.max(axis=(1, 2))
    return columns


def write_csv(patient_map: PatientMap, out: Path) -> None:
    """Write a CSV file with one line per patch.

    The first columns are the columns of WSInfer: ``minx``, ``miny``, ``width``, ``height`` and
    ``prob_CLASS``. The next columns are ``row``, ``col`` and the other columns of ``patch_table``.
    The last column is ``source_file``: the name of the slide or pack that the coordinates refer to.
    ``minx``, ``miny``, ``width`` and ``height`` are integers in level-0 px, rounded so that
    neighboring patches share an edge.
    """
    transform = grid_transform(patient_map, "level0")
    cells = patient_map.row_col[:, ::-1]
    first, last = (transform.points(n).round().astype(np.int64) for n in (cells, cells + 1))
    numbers = patch_table(patient_map)
    corners = pd.DataFrame(
        np.hstack([first, last - first]), columns=["minx", "miny", "width", "height"]
    )
    row_col = pd.DataFrame(patient_map.row_col, columns=["row", "col"])
    table = pd.concat([corners, numbers.iloc[:, :2], row_col, numbers.iloc[:, 2:]], axis=1)
    table["source_file"] = patient_map.source_file
    write_bytes(out, csv_text(table, float_format="%.7g").encode())
