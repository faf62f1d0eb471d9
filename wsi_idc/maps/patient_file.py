"""Patient files: the sums, the table and the links of the maps of a patient with several slides."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wsi_idc.core.errors import MapError, WsiIdcError
from wsi_idc.core.files import atomic_write
from wsi_idc.maps.cohort import PATIENT_COLUMNS, Cohort
from wsi_idc.maps.map_reader import PATIENT_FORMAT, map_path, read_map_without_cams, slide_paths
from wsi_idc.maps.table_file import read_table_file, table_file_bytes

logger = logging.getLogger(__name__)


def write_patient_file(path: Path) -> None:
    """Write the file of a patient with several slides in one atomic step.

    The file ``PATIENT.h5`` has the maps that are in the folder ``PATIENT``. Its attributes are the
    patient's row in the table of patients, and its table has the rows of the maps in the table of
    the cohort. ``/maps/SLIDE`` is an external link to the map of a slide.

    Raises:
        BusyError: Another process is writing the file.
        MapError: The folder has no usable map.
    """
    # The maps are read while the file is locked. If several processes make maps of the patient,
    # the last one reads the maps of all.
    with atomic_write(path) as partial:
        cohort = _read_slides(path)
        if not cohort.rows:
            raise MapError(f"{path}: no map in {path.with_suffix('')} can be used")
        links = {cohort.rows[name]["slide"]: target for name, target in cohort.paths.items()}
        row = cohort.patient_row(path.stem)
        data = table_file_bytes(path.parent, PATIENT_FORMAT, cohort.table(), links, row)
        partial.write_bytes(data)


def _read_slides(path: Path) -> Cohort:
    """Read the maps of a patient's slides; log and leave out files that are no such maps."""
    cohort = Cohort()
    for file in slide_paths(path):
        try:
            patient_map = read_map_without_cams(file)
            if map_path(path.parent, patient_map.map_name) != file:
                raise MapError(f"{file}: is the map of {patient_map.map_name}")
            cohort.add(file, patient_map)
        except (WsiIdcError, OSError) as error:
            logger.warning("not in %s: %s", path, error)
    return cohort


def read_patient_file(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read a patient file: the patient's row in the table of patients, and the rows of the maps.

    Raises:
        MapError: The file is missing, damaged, or no patient file.
    """
    attributes, table = read_table_file(
        path, PATIENT_FORMAT, kind="file of several slides", remedy="wsi-idc map"
    )
    row = {name: attributes[name] for name in PATIENT_COLUMNS if name in attributes}
    return {name: np.asarray(value).tolist() for name, value in row.items()}, table
