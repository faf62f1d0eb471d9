"""Cohort file: the cohort table in HDF5, with a link to each map."""

import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import pandas as pd

from wsi_idc.core.errors import MapError, first_line
from wsi_idc.core.files import safe_filename, write_bytes
from wsi_idc.core.hdf5 import (
    UNREADABLE,
    DatasetSpec,
    has_format,
    open_hdf5,
    read_attributes,
    read_dataset,
)
from wsi_idc.maps.map_reader import is_map

FORMAT = "wsi-idc-cohort"
FORMAT_VERSION = 1
_MAX_MAPS = 1_000_000


def write_cohort_h5(path: Path, table: pd.DataFrame, maps: Mapping[str, Path]) -> None:
    """Write the table of a cohort and links to its maps in one atomic step.

    ``/table/COLUMN`` is a dataset with one entry per map. ``/maps/PATIENT`` is an external link to
    the map, relative to the cohort file: the links stay valid if all files are moved together.

    Args:
        path: Cohort file.
        table: One row per map; columns of text, counts and numbers (NaN if unknown).
        maps: Patient to map file.

    Raises:
        MapError: ``path`` exists and is not a cohort file.
    """
    check_replaceable(path)
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "complete": 0})
        file.attrs["num_maps"] = len(maps)
        columns = file.create_group("table")
        columns.attrs["columns"] = list(table.columns)
        for name, values in table.items():
            if values.dtype.kind in "if":
                columns[str(name)] = values.to_numpy()
            else:
                texts = values.to_numpy(object)
                columns.create_dataset(str(name), data=texts, dtype=h5py.string_dtype())
        links = file.create_group("maps")
        for patient, target in maps.items():
            relative = os.path.relpath(target.resolve(), path.parent.resolve())
            links[safe_filename(patient)] = h5py.ExternalLink(relative, "/")
        file.attrs["complete"] = 1
        file.flush()
        data = file.id.get_file_image()
    write_bytes(path, data)


def check_replaceable(path: Path) -> None:
    """Raise an error if ``path`` exists and is not a cohort file.

    Raises:
        MapError: The file is a patient's map or another file; the message names a remedy.
    """
    if is_map(path):
        raise MapError(
            f"{path} is the map of a patient, not a table to replace; put that map into another "
            "folder"
        )
    if path.exists() and not is_cohort(path):
        raise MapError(f"{path} exists and was not written by this command; move it away")


def is_cohort(path: Path) -> bool:
    """Return whether a file is a cohort file by its attribute ``format``."""
    return has_format(path, FORMAT)


def read_cohort_h5(path: Path) -> pd.DataFrame:
    """Read the table of a cohort file.

    Raises:
        MapError: The file is missing, damaged, or something else.
    """
    try:
        with open_hdf5(path) as file:
            attrs = read_attributes(file)
            if str(attrs.get("format")) != FORMAT or int(attrs["complete"]) != 1:
                raise ValueError("not a complete cohort file")
            num = int(attrs["num_maps"])
            if num > _MAX_MAPS:
                raise ValueError(f"{num} maps are too many")
            columns = [str(name) for name in read_attributes(file["table"])["columns"]]
            spec = DatasetSpec(("i4", "i8", "f4", "f8", "text"), (num,))
            return pd.DataFrame(
                {name: read_dataset(file, f"table/{name}", spec) for name in columns}
            )
    except UNREADABLE as error:
        reason = first_line(error)
        raise MapError(
            f"{path}: not a usable cohort file ({reason}); make it again with wsi-idc report"
        ) from None
