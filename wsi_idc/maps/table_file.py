"""HDF5 files that have a table of maps and a link to each map."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from wsi_idc.core import hdf5
from wsi_idc.core.errors import MapError, first_line

_FORMAT_VERSION = 1
_MAX_MAPS = 1_000_000


def table_file_bytes(
    folder: Path,
    file_format: str,
    table: pd.DataFrame,
    maps: Mapping[str, Path],
    attributes: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bytes of a file with a table of maps and links to the maps.

    ``/table/COLUMN`` is a dataset with one entry per map. ``/maps/NAME`` is an external link to
    the map. Link targets are relative to the folder of the file, so the links stay valid if all
    files are moved together. The same arguments always give the same bytes.

    Args:
        folder: Folder of the file.
        file_format: Value of the attribute ``format``.
        table: Table with one row per map; columns have text or numbers (NaN if unknown).
        maps: For each name of a link, the map file.
        attributes: Further attributes of the file.
    """
    with h5py.File("table", "w", driver="core", backing_store=False) as file:
        file.attrs.update({"format": file_format, "format_version": _FORMAT_VERSION, "complete": 0})
        file.attrs.update({"num_maps": len(maps), **(attributes or {})})
        columns = file.create_group("table")
        columns.attrs["columns"] = list(table.columns)
        for name, values in table.items():
            if values.dtype.kind in "if":
                columns[str(name)] = values.to_numpy()
            else:
                texts = values.to_numpy(object)
                columns.create_dataset(str(name), data=texts, dtype=h5py.string_dtype())
        links = file.create_group("maps")
        for name, target in maps.items():
            relative = os.path.relpath(target.resolve(), folder.resolve())
            links[name] = h5py.ExternalLink(relative, "/")
        file.attrs["complete"] = 1
        file.flush()
        data: bytes = file.id.get_file_image()
    return data


def read_table_file(
    path: Path, file_format: str, *, kind: str, remedy: str
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read the attributes and the table of a file.

    Args:
        path: File with a table of maps.
        file_format: Expected value of the attribute ``format``.
        kind: Name of this kind of file, for the error message.
        remedy: Command that makes the file, for the error message.

    Raises:
        MapError: The file is missing, damaged, or of another format.
    """
    try:
        with hdf5.open_hdf5(path) as file:
            attrs = hdf5.read_attributes(file)
            if str(attrs.get("format")) != file_format or int(attrs["complete"]) != 1:
                raise ValueError(f"not a complete {kind}")
            num = int(attrs["num_maps"])
            if num > _MAX_MAPS:
                raise ValueError(f"{num} maps are too many")
            group = hdf5.own_item(file, "table")
            columns = [str(name) for name in hdf5.read_attributes(group)["columns"]]
            spec = hdf5.DatasetSpec(("i4", "i8", "f4", "f8", "text"), (num,))
            table = {name: hdf5.read_dataset(file, f"table/{name}", spec) for name in columns}
            return attrs, pd.DataFrame(table)
    except hdf5.UNREADABLE as error:
        reason = first_line(error)
        raise MapError(
            f"{path}: not a usable {kind} ({reason}); make it again with {remedy}"
        ) from None
