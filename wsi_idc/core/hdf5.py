"""Safe reading of HDF5 files: packs, maps and cohort files may be damaged or forged.

A file is opened with ``open_hdf5`` and its datasets are compared with a table of ``DatasetSpec``
before any value is read, so that a file can neither make libhdf5 hang, nor claim more memory than
it holds, nor lead to another file. Errors are those of ``UNREADABLE``; checks raise ``ValueError``.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError, first_line

# Errors of h5py and NumPy at a damaged or forged file.
UNREADABLE = (
    *(OSError, KeyError, IndexError, ValueError, TypeError, AttributeError),
    *(RuntimeError, OverflowError, MemoryError),
)
_KINDS = {"number": "biuf", "integer": "iu"}
_MAX_ITEM_BYTES = 8
_SMALL_BYTES = 2**24
_MAX_COMPRESSION = 1100  # deflate reaches 1032 to 1
_HEAP_SIGNATURE = b"GCOL\x01\0\0\0"
_HEAP_HEAD = struct.Struct("<8sQ")
_HEAP_OBJECT = struct.Struct("<H6xQ")
_SEARCHED_BYTES = 2**24  # packs and maps have their heaps before all pixels


@dataclass(frozen=True)
class DatasetSpec:
    """Requirements of a dataset.

    Attributes:
        dtype: NumPy type such as "u1", or "number" (boolean, integer or float of at most 8 bytes),
            "integer" or "text"; or a tuple of permitted ones.
        shape: For each axis its length, the smallest and largest permitted length, or None for any.
        values: Smallest and largest permitted value; NaN is then refused too. None permits all.
        is_optional: Whether the dataset may be missing.
    """

    dtype: str | tuple[str, ...]
    shape: tuple[int | tuple[int, int] | None, ...]
    values: tuple[float, float] | None = None
    is_optional: bool = False


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading."""
    _check_heaps(path)
    # Without a lock: many network disks have none.
    return h5py.File(path, "r", locking=False)


def read_format(path: Path) -> str:
    """Return the attribute ``format`` of an HDF5 file, an empty text if it has none.

    Raises:
        DataError: HDF5 cannot read the file.
    """
    try:
        with open_hdf5(path) as file:
            return str(read_attributes(file).get("format", ""))
    except UNREADABLE as error:
        raise DataError(
            f"{path}: HDF5 cannot read it ({first_line(error)}); make it again, or remove it"
        ) from None


def has_format(path: Path, file_format: str) -> bool:
    """Return whether a path is a readable HDF5 file with this attribute ``format``."""
    try:
        return path.is_file() and read_format(path) == file_format
    except DataError:
        return False


def read_attributes(item: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Read the attributes of a file, group or dataset that are text, numbers or arrays.

    Attributes of other types are left out: this package writes none, and libhdf5 may crash when it
    reads one with a damaged type.
    """
    dtypes = {name: item.attrs.get_id(name).dtype for name in item.attrs}
    return {
        name: item.attrs[name]
        for name, dtype in dtypes.items()
        if dtype.kind != "O" or h5py.check_string_dtype(dtype) is not None
    }


def read_datasets(
    group: h5py.File | h5py.Group, specs: Mapping[str, DatasetSpec]
) -> dict[str, NDArray[Any]]:
    """Check and read datasets by name; optional ones that are missing are left out."""
    return {
        name: read_dataset(group, name, spec)
        for name, spec in specs.items()
        if not (spec.is_optional and group.get(name, getlink=True) is None)
    }


def read_dataset(group: h5py.File | h5py.Group, name: str, spec: DatasetSpec) -> NDArray[Any]:
    """Check and read one dataset; text is returned as an array of ``str`` objects."""
    dataset = check_dataset(group, name, spec)
    if dataset.dtype.kind == "O":
        return np.asarray(dataset.asstr()[:], dtype=object)
    values: NDArray[Any] = dataset[:]
    if spec.values is not None:
        low, high = spec.values
        if not ((values >= low) & (values <= high)).all():
            raise ValueError(f"{dataset.name} has values outside {low} to {high}")
    return values


def check_dataset(group: h5py.File | h5py.Group, name: str, spec: DatasetSpec) -> h5py.Dataset:
    """Return a dataset, unread, if its type, shape and size are right and it is in this file."""
    item: Any = group
    for part in name.split("/"):
        is_own = isinstance(item, h5py.Group) and isinstance(
            item.get(part, getlink=True), h5py.HardLink
        )
        item = item[part] if is_own else None
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise ValueError(f"{group.name.rstrip('/')}/{name} is not a dataset of this file")
    permitted = (spec.dtype,) if isinstance(spec.dtype, str) else spec.dtype
    if not any(_is_dtype(item.dtype, dtype) for dtype in permitted):
        raise ValueError(f"{item.name} is of type {item.dtype}")
    limits = [length if isinstance(length, tuple) else (length, length) for length in spec.shape]
    if len(item.shape) != len(limits) or not all(
        low is None or high is None or low <= length <= high
        for length, (low, high) in zip(item.shape, limits, strict=True)
    ):
        raise ValueError(f"{item.name} is of shape {item.shape}")
    if item.nbytes > max(_SMALL_BYTES, _MAX_COMPRESSION * item.id.get_storage_size()):
        raise ValueError(f"{item.name} claims {item.nbytes} bytes, more than the file holds")
    return item


def _is_dtype(dtype: np.dtype[Any], permitted: str) -> bool:
    if permitted == "text":
        text = h5py.check_string_dtype(dtype)
        return text is not None and text.length is None
    if permitted in _KINDS:
        return dtype.kind in _KINDS[permitted] and dtype.itemsize <= _MAX_ITEM_BYTES
    return dtype == np.dtype(permitted)


def _check_heaps(path: Path) -> None:
    """Raise ValueError if HDF5 would never come to the end of a heap near the start of a file.

    Texts of any length are stored in *global heaps* (HDF5 File Format Specification 3.0, section
    III.E): a sequence of objects, each with its size. At a size of 0, as in a block that a disk
    lost, libhdf5 2.0 reads the same place again and again.
    """
    with path.open("rb") as file:
        data = file.read(_SEARCHED_BYTES)
    start = data.find(_HEAP_SIGNATURE)
    while start >= 0:
        start = data.find(_HEAP_SIGNATURE, _end_of_heap(data, start))


def _end_of_heap(data: bytes, start: int) -> int:
    """Return the end of a heap, or of its signature if the heap has no complete head."""
    if start + _HEAP_HEAD.size > len(data):
        return start + len(_HEAP_SIGNATURE)
    _, size = _HEAP_HEAD.unpack_from(data, start)
    end = min(start + size, len(data))  # HDF5 itself reports a heap that is cut short
    position = start + _HEAP_HEAD.size
    while position + _HEAP_OBJECT.size <= end:
        index, length = _HEAP_OBJECT.unpack_from(data, position)
        # The size of free space, object 0, includes its own head.
        step = _HEAP_OBJECT.size + -(-length // 8) * 8 if index else length
        if step < _HEAP_OBJECT.size:
            raise ValueError("its texts are damaged")
        position += step
    return int(end)
