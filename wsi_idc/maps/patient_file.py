"""Patient files: each file describes and links the maps of a patient with several slides."""

import logging
import math
from pathlib import Path
from typing import Any

import pandas as pd

from wsi_idc.core.errors import MapError, WsiIdcError, first_line
from wsi_idc.core.files import atomic_write
from wsi_idc.maps.cohort import PATIENT_TYPES, Cohort, summarize
from wsi_idc.maps.map_reader import PATIENT_FORMAT, map_path, read_map_without_cams, slide_paths
from wsi_idc.maps.table_file import read_table_file, table_file_bytes

logger = logging.getLogger(__name__)


def write_patient_file(path: Path) -> None:
    """Write the file of a patient with several slides in one atomic step.

    The file ``PATIENT.h5`` describes the maps in the folder ``PATIENT``. The attributes of the
    file are the patient's row in the table of patients. The table of the file has the rows of
    these maps in the cohort table. ``/maps/SLIDE`` is an external link to the map of a slide.

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
    """Read the maps of a patient's slides; leave out unusable files and log the reasons."""
    cohort = Cohort()
    for file in slide_paths(path):
        try:
            patient_map = read_map_without_cams(file)
            if map_path(path.parent, patient_map.map_name) != file:
                raise MapError(
                    f"{file}: is the map of {patient_map.map_name}, so the file name is wrong"
                )
            cohort.add(file, summarize(patient_map))
        except (WsiIdcError, OSError) as error:
            logger.warning("not in %s: %s", path, error)
    return cohort


def read_patient_file(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read the patient's row and the table of maps from a patient file.

    Raises:
        MapError: The file is missing, damaged, or not a patient file.
    """
    attributes, table = read_table_file(
        path, PATIENT_FORMAT, kind="file of several slides", remedy="wsi-idc map"
    )
    kinds = {name: kind for name, kind in PATIENT_TYPES.items() if name in attributes}
    try:
        return {name: _value(attributes[name], kind) for name, kind in kinds.items()}, table
    except (ValueError, TypeError, OverflowError) as error:
        reason = f"an attribute is damaged ({first_line(error)})"
        raise MapError(f"{path}: {reason}; make it again with wsi-idc map") from None


def _value(value: Any, kind: Any) -> str | int | float:
    if kind is str:
        return str(value)
    number: int | float = kind(value).item()
    if math.isinf(number):
        raise ValueError("an infinite number")
    return number
