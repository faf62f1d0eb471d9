"""Fast writing of small HDF5 items with h5py's low-level API.

A map has about 60 attributes and 20 small datasets. h5py's own ``attrs`` and ``group[name] = ...``
write the same items, but take longer.
"""

import functools
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t
from numpy.typing import ArrayLike, NDArray

_TEXT = h5py.string_dtype()
_WITHOUT_TIMES = h5p.create(h5p.DATASET_CREATE)
_WITHOUT_TIMES.set_obj_track_times(False)  # equal maps have equal bytes


def create_attributes(item: h5py.Group | h5py.Dataset, values: Mapping[str, ArrayLike]) -> None:
    """Create attributes that the item does not have yet."""
    for name, value in values.items():
        array = _array(value)
        kind, space = _type(array.dtype.str), _space(array.shape)
        attribute = h5a.create(item.id, name.encode(), kind, space)
        attribute.write(array)


def create_dataset(
    group: h5py.Group, name: str, values: ArrayLike, attributes: Mapping[str, Any] | None = None
) -> None:
    """Create a contiguous dataset that the group does not have yet, and its attributes."""
    array = _array(values)
    kind, space = _type(array.dtype.str), _space(array.shape)
    dataset = h5d.create(group.id, name.encode(), kind, space, _WITHOUT_TIMES)
    dataset.write(h5s.ALL, h5s.ALL, array)
    if attributes:
        create_attributes(h5py.Dataset(dataset), attributes)


@functools.cache
def _type(dtype: str) -> h5t.TypeID:
    """Return the HDF5 type of a NumPy type; an object is a text."""
    return h5t.py_create(_TEXT if dtype == "|O" else np.dtype(dtype), logical=True)


@functools.lru_cache
def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape)


def _array(values: ArrayLike) -> NDArray[Any]:
    array = np.ascontiguousarray(values) if np.ndim(values) else np.asarray(values)
    return array.astype(object).astype(_TEXT) if array.dtype.kind == "U" else array
