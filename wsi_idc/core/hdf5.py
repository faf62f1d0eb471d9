"""Look at an HDF5 file before libhdf5 does what a damaged one makes it do: crash, or never end.

Texts of any length lie in *global heaps* (HDF5 File Format Specification 3.0, section III.E): one
object after the other, each with its size. Where a size is 0, as in a block that a disk lost,
libhdf5 2.0 looks at the same place again and again. What it would never come back from is found
here.
"""

import struct
from pathlib import Path
from typing import Any

import h5py

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEAD = struct.Struct("<8sQ")
_OBJECT = struct.Struct("<H6xQ")
# Packs and maps have their heaps ahead of all pixels.
_SEARCHED_BYTES = 2**24


def check_heaps(path: Path) -> None:
    """Raise where HDF5 would not come to the end of a global heap near the start of a file.

    Raises:
        ValueError: It would not.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_SEARCHED_BYTES)
    at = data.find(_SIGNATURE)
    while at >= 0:
        at = data.find(_SIGNATURE, _end_of_heap(data, at))


def _end_of_heap(data: bytes, start: int) -> int:
    """Return where a heap ends, or the first byte after its signature where it is none."""
    after = start + len(_SIGNATURE)
    if start + _HEAD.size > len(data):
        return after
    _, size = _HEAD.unpack_from(data, start)
    end = min(start + size, len(data))  # HDF5 itself sees one that is cut short
    at = start + _HEAD.size
    while at + _OBJECT.size <= end:
        index, length = _OBJECT.unpack_from(data, at)
        # The size of free space, object 0, has its own head in it.
        step = _OBJECT.size + -(-length // 8) * 8 if index else length
        if step < _OBJECT.size:
            raise ValueError("its texts are damaged")
        at += step
    return end


def attributes(item: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Return the attributes of an open file, group or data set that are text, numbers or arrays.

    Those of other types are left out: none is ours, and libhdf5 may crash where it reads one whose
    type is damaged.
    """
    dtypes = {name: item.attrs.get_id(name).dtype for name in item.attrs}
    return {
        name: item.attrs[name]
        for name, dtype in dtypes.items()
        if dtype.kind != "O" or h5py.check_string_dtype(dtype) is not None
    }
