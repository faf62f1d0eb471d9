"""One row a patch: what the CSV and the measurements in QuPath say of it."""

from pathlib import Path

import numpy as np
import pandas as pd

from wsi_idc.core.files import write_bytes
from wsi_idc.export.coordinates import grid_transform
from wsi_idc.maps.patient_map import PatientMap


def numbers_of(content: PatientMap) -> pd.DataFrame:
    """Return what is known of each patch, one row a patch.

    Columns: ``prob_CLASS`` and ``logit_CLASS`` of both classes, ``label`` (-1 unknown), and where
    the map has them ``uncertainty``, ``smoothed``, ``cam_mean`` and ``cam_max``.
    """
    other, idc = content.class_names
    columns = {
        f"prob_{other}": 1 - content.probability.astype(np.float64),
        f"prob_{idc}": content.probability.astype(np.float64),
        f"logit_{other}": content.logit[:, 0],
        f"logit_{idc}": content.logit[:, 1],
        "label": content.label,
    }
    if content.uncertainty is not None:
        columns["uncertainty"] = content.uncertainty
    if content.smoothed is not None:
        columns["smoothed"] = content.smoothed
    if content.cam is not None:
        columns["cam_mean"] = content.cam.mean(axis=(1, 2))
        columns["cam_max"] = content.cam.max(axis=(1, 2))
    return pd.DataFrame(columns)


def write_csv(content: PatientMap, out: Path) -> None:
    """Write one line a patch: WSInfer's columns first, then the cell and all other numbers.

    WSInfer's are ``minx``, ``miny``, ``width``, ``height`` in whole level-0 px, where patches side
    by side share an edge, and ``prob_CLASS``.

    Raises:
        MapError: The corners of the patches are not on a grid.
    """
    place = grid_transform(content)
    first = place.points(content.row_col[:, ::-1]).round().astype(np.int64)
    last = place.points(content.row_col[:, ::-1] + 1).round().astype(np.int64)
    numbers = numbers_of(content)
    num_probabilities = len(content.class_names)
    table = pd.concat(
        [
            pd.DataFrame(
                np.hstack([first, last - first]), columns=["minx", "miny", "width", "height"]
            ),
            numbers.iloc[:, :num_probabilities],
            pd.DataFrame(content.row_col, columns=["row", "col"]),
            numbers.iloc[:, num_probabilities:],
        ],
        axis=1,
    )
    write_bytes(out, table.to_csv(index=False, float_format="%.7g").encode())
