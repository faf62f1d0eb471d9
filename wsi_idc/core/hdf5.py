"""Safe reading and creation of HDF5 files.

Packs, maps and cohort files may be damaged or forged, and a disk may be full.

``open_hdf5`` opens a file. Each dataset is compared with a ``DatasetSpec`` before its values are
read. Therefore a damaged file cannot make libhdf5 hang, allocate too much memory, or read another
file. A failed check raises ``ValueError``. ``UNREADABLE`` lists all possible errors.
"""

import io
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import regular_file

# Errors that h5py, NumPy and this module raise on a damaged or forged file. MemoryError is not in
# the list: sizes are checked first, so a MemoryError means that the machine has too little memory.
UNREADABLE = (
    *(OSError, KeyError, IndexError, ValueError, TypeError, AttributeError),
    *(RuntimeError, OverflowError),
)
_KINDS = {"number": "biuf", "integer": "iu"}
_MAX_ITEM_BYTES = 8
_SMALL_BYTES = 2**24
_MAX_COMPRESSION = 1100  # deflate makes data at most 1032 times smaller
_MAX_SPARSE_BYTES, _MAX_SPARSENESS = 2**28, 16  # for a dataset with missing chunks
_HEAP_SIGNATURE = b"GCOL\x01\0\0\0"
_HEAP_HEAD = struct.Struct("<8sQ")
_HEAP_OBJECT = struct.Struct("<H6xQ")
_SEARCHED_BYTES = 2**24  # in packs and maps, all heaps are before the pixels


@dataclass(frozen=True)
class DatasetSpec:
    """Requirements that a dataset must meet.

    Attributes:
        dtype: NumPy type such as "u1", or a kind: "text", "integer" or "number". A "number" is a
            boolean, integer or float of at most 8 bytes. A tuple permits several types.
        shape: Length of each axis: a number, a tuple (smallest, largest), or None for any length.
        values: Smallest and largest permitted value; NaN is then not permitted. None permits all
            values, also NaN.
        is_optional: Whether the dataset may be missing.
        rows_at_once: None if the dataset has all its chunks. If chunks may be missing, number of
            rows that the caller reads at a time. HDF5 fills missing chunks with a constant.
    """

    dtype: str | tuple[str, ...]
    shape: tuple[int | tuple[int, int] | None, ...]
    values: tuple[float, float] | None = None
    is_optional: bool = False
    rows_at_once: int | None = None


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading."""
    _check_heaps(path)
    # Open without an HDF5 lock, because many network disks do not support locks.
    return h5py.File(path, "r", locking=False)


class OutputFile(io.FileIO):
    """File that HDF5 writes to. Errors are stored, not raised: an exception may crash HDF5."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all bytes; after an error, write nothing."""
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return 0


@contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """Context manager: create an HDF5 file.

    Raises:
        OSError: The disk is full, or another error of the disk; raised at the end of the block.
    """
    with OutputFile(path, "w+") as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file
        finally:
            if raw.error is not None:
                raise raw.error from None


def read_format(path: Path) -> str:
    """Return the attribute ``format`` of a file; "" if the file has no such attribute.

    Raises:
        DataError: HDF5 cannot read the file.
    """
    try:
        with open_hdf5(path) as file:
            return str(read_attributes(file).get("format", ""))
    except UNREADABLE as error:
        reason = f"HDF5 cannot read this file ({first_line(error)})"
        raise DataError(f"{path}: {reason}; make it again, or remove it") from None


def has_format(path: Path, file_format: str) -> bool:
    """Return whether a path is a readable HDF5 file whose ``format`` is ``file_format``."""
    try:
        return path.is_file() and read_format(path) == file_format
    except DataError:
        return False


def read_attributes(item: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Read the text, number and array attributes of a file, group or dataset.

    Attributes of other types are left out. This package writes no such attributes, and libhdf5 may
    crash when it reads an attribute with a damaged type.
    """
    attrs = item.attrs  # a property that opens the group at each access
    ids = {name: attrs.get_id(name) for name in attrs}
    if any(math.prod(own.shape) * own.dtype.itemsize > _SMALL_BYTES for own in ids.values()):
        raise ValueError("an attribute is too large")
    dtypes = {name: own.dtype for name, own in ids.items()}
    return {
        name: attrs[name]
        for name, dtype in dtypes.items()
        if dtype.kind != "O" or h5py.check_string_dtype(dtype) is not None
    }


def read_datasets(
    group: h5py.File | h5py.Group, specs: Mapping[str, DatasetSpec]
) -> dict[str, NDArray[Any]]:
    """Check and read datasets; return a dictionary from name to array.

    Optional datasets that are missing are left out.
    """
    return {
        name: read_dataset(group, name, spec)
        for name, spec in specs.items()
        if not (spec.is_optional and not has_link(group, name))
    }


def has_link(group: h5py.File | h5py.Group, name: str) -> bool:
    """Return whether a group has an item or a link of this name; links are not followed."""
    return group.get(name, getlink=True) is not None


def own_item(group: h5py.File | h5py.Group, name: str) -> Any:
    """Return an item of a group; None if the group has no such item.

    Soft links and external links are not followed; they count as missing items.
    """
    item: Any = group
    for part in name.split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        item = item[part] if isinstance(link, h5py.HardLink) else None
    return item


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
    """Return a dataset if its type, shape and size are valid; the values are not read.

    Raises:
        ValueError: The dataset is not valid, or another file contains its values.
    """
    item = own_item(group, name)
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
    stored = item.id.get_storage_size()
    if spec.rows_at_once is not None:
        num_bytes = item.nbytes // len(item) * max(spec.rows_at_once, (item.chunks or (1,))[0])
        is_possible = num_bytes <= max(_MAX_SPARSE_BYTES, _MAX_SPARSENESS * stored)
    else:
        is_possible = item.nbytes <= max(_SMALL_BYTES, _MAX_COMPRESSION * stored)
    if not is_possible:
        raise ValueError(f"{item.name} claims {item.nbytes} bytes, but the file has fewer")
    return item


def _is_dtype(dtype: np.dtype[Any], permitted: str) -> bool:
    if permitted == "text":
        text = h5py.check_string_dtype(dtype)
        return text is not None and text.length is None
    if permitted in _KINDS:
        return dtype.kind in _KINDS[permitted] and dtype.itemsize <= _MAX_ITEM_BYTES
    return dtype == np.dtype(permitted)


def _check_heaps(path: Path) -> None:
    """Raise ValueError if libhdf5 would never finish reading a damaged heap of the file.

    HDF5 stores texts of variable length in *global heaps* (HDF5 File Format Specification 3.0,
    section III.E). A heap is a sequence of objects, and the head of each object contains the size
    of the object. If a size is 0 because of a disk error, libhdf5 2.0 reads the same object without
    end. This function checks the heaps in the first ``_SEARCHED_BYTES`` bytes of the file.
    """
    with regular_file(path).open("rb") as file:
        data = file.read(_SEARCHED_BYTES)
    start = data.find(_HEAP_SIGNATURE)
    while start >= 0:
        start = data.find(_HEAP_SIGNATURE, _end_of_heap(data, start))


def _end_of_heap(data: bytes, start: int) -> int:
    """Return the position after a heap.

    If the head of the heap is incomplete, return the position after its signature.
    """
    if start + _HEAP_HEAD.size > len(data):
        return start + len(_HEAP_SIGNATURE)
    _, size = _HEAP_HEAD.unpack_from(data, start)
    end = min(start + size, len(data))  # HDF5 itself reports a heap that is cut short
    position = start + _HEAP_HEAD.size
    while position + _HEAP_OBJECT.size <= end:
        index, length = _HEAP_OBJECT.unpack_from(data, position)
        # Object 0 is the free space of the heap. Its size includes its own head.
        step = _HEAP_OBJECT.size + -(-length // 8) * 8 if index else length
        if step < _HEAP_OBJECT.size:
            raise ValueError("texts in the file are damaged")
        position += step
    return int(end)
