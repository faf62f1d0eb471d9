"""Cache of values that an encoder computed for the patches of a pack, in an HDF5 file.

The file has its final size from the start, and HDF5 does not change it afterwards: the values are
written to their places in the file without HDF5. Therefore the file of a killed process is valid,
and another process continues with the missing patches.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core import hdf5
from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import atomic_write, full_disk_as_error
from wsi_idc.core.hdf5 import DatasetSpec
from wsi_idc.core.locks import wait_for_lock

FORMAT = "wsi-idc-feature-cache"
FORMAT_VERSION = 1
_IS_DONE = "is_done"


class FeatureCache:
    """An open cache; ``open_feature_cache`` opens it.

    Attributes:
        path: File of the cache.
    """

    def __init__(
        self, path: Path, file: BinaryIO, num_rows: int, columns: Mapping[str, tuple[int, int]]
    ) -> None:
        """Use an open file; ``columns`` has the offset and the row length of each dataset."""
        self.path, self._file, self._num_rows, self._columns = path, file, num_rows, columns

    def missing(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``rows`` that the cache does not have yet."""
        return rows[~self._map(_IS_DONE)[rows, 0].astype(bool)]

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the values of patches, shape (n, length of a row), float32."""
        return np.asarray(self._map(name)[rows])

    def write(self, rows: NDArray[np.int64], **values: NDArray[np.float32]) -> None:
        """Write the values of patches; a patch counts as done after its values are on the disk."""
        with full_disk_as_error(self.path):
            for name, array in values.items():
                self._write(name, rows, array)
            os.fsync(self._file.fileno())
            self._write(_IS_DONE, rows, np.ones((len(rows), 1), np.uint8))

    def _write(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        offset, length = self._columns[name]
        assert values.shape == (len(rows), length)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = zip(np.split(rows, breaks), np.split(values, breaks), strict=True)
        for numbers, block in runs:
            if len(numbers):
                self._write_bytes(block.tobytes(), offset + int(numbers[0]) * block[0].nbytes)

    def _write_bytes(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        while rest:  # a full disk takes only a part
            num_bytes = os.pwrite(self._file.fileno(), rest, offset)
            rest, offset = rest[num_bytes:], offset + num_bytes

    def _map(self, name: str) -> NDArray[Any]:
        offset, length = self._columns[name]
        dtype = np.uint8 if name == _IS_DONE else np.float32
        return np.memmap(self._file, dtype, "r", offset, (self._num_rows, length))


@contextmanager
def open_feature_cache(
    folder: Path,
    key: Mapping[str, Any],
    *,
    num_rows: int,
    lengths: Mapping[str, int],
    on_wait: Callable[[], None] | None = None,
) -> Iterator[FeatureCache]:
    """Context manager that opens a cache, or creates a new one; other processes wait meanwhile.

    Args:
        folder: Folder of the caches.
        key: Values that determine the content of the cache, as JSON values. The name of the file is
            made from them.
        num_rows: Number of patches of the pack.
        lengths: For each dataset, the number of values of a patch.
        on_wait: Function that is called while this process waits; an error ends the wait.

    Raises:
        DataError: The file is damaged, or is not a cache of this key.
    """
    text = json.dumps({**key, "format_version": FORMAT_VERSION}, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.h5"
    lengths = {**lengths, _IS_DONE: 1}
    with ExitStack() as stack:
        lock = path.with_name(f".{path.stem}.lock")
        log_as = f"another process that computes the features in {path}"
        stack.enter_context(wait_for_lock(lock, what=path, log_as=log_as, on_wait=on_wait))
        if not path.exists():
            _create(path, text, num_rows, lengths)
        columns = _read_columns(path, text, num_rows, lengths)
        file = stack.enter_context(path.open("r+b"))
        yield FeatureCache(path, file, num_rows, columns)


def _create(path: Path, key: str, num_rows: int, lengths: Mapping[str, int]) -> None:
    with atomic_write(path) as partial, hdf5.create_hdf5(partial) as file:
        file.attrs.update({"format": FORMAT, "key": key})
        for name, length in lengths.items():
            if name == _IS_DONE:
                file[name] = np.zeros((num_rows, length), np.uint8)
                continue
            # Reserve space for the values; a file system does not store it before it is written.
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((num_rows, length))
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_FLOAT, space, layout)


def _read_columns(
    path: Path, key: str, num_rows: int, lengths: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Check a cache; return the offset and the row length of each dataset."""
    try:
        columns, size = {}, path.stat().st_size
        with hdf5.open_hdf5(path) as file:
            attrs = hdf5.read_attributes(file)
            if attrs.get("format") != FORMAT or attrs.get("key") != key:
                raise ValueError("it has another key")
            for name, length in lengths.items():
                dtype = "u1" if name == _IS_DONE else "f4"
                dataset = hdf5.check_dataset(file, name, DatasetSpec(dtype, (num_rows, length)))
                offset = dataset.id.get_offset()
                if offset is None or offset + dataset.nbytes > size:
                    raise ValueError(f"{dataset.name} is incomplete")
                columns[name] = (int(offset), length)
        return columns
    except hdf5.UNREADABLE as error:
        reason = first_line(error)
        raise DataError(f"{path} is not a usable cache ({reason}); delete this file") from None
