"""The pack: one HDF5 file that holds every patch of a data set, decoded.

Patches are sorted by patient, then row, then column, so that a patient is one contiguous slice.
The pixels are contiguous and uncompressed, so a reader memory-maps them: no HDF5 handle stays
open, none is shared with a worker process, and a disk without file locks does no harm.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import replacing
from wsi_idc.data.pack_read import (
    COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    UNREADABLE,
    PackInfo,
    dataset_of,
    opened,
    read_all_but_pixels,
    stated_format,
)
from wsi_idc.geometry.grid import cells_of

_HELD_BYTES = 2**25


class Pack:
    """A pack opened for reading: the index in memory, the pixels memory-mapped.

    Args:
        path: The file.
        copy: A copy of it on a faster disk, which is read in its place.

    Attributes:
        path: The file, for people and records.
        file: The file that is read: ``path``, or the copy.
        info: Its attributes.
        patients: Sorted patient ids.
        index: One row a patch with columns ``patient`` (int, into ``patients``), ``x``, ``y``
            (px, 0-based), ``label``, ``height``, ``width`` (px before padding).
        patches: Pixels, shape (N, patch_px, patch_px, 3), uint8, memory-mapped, read-only.

    Raises:
        DataError: The file is no complete pack.
    """

    def __init__(self, path: Path, copy: Path | None = None) -> None:
        self.path = Path(path)
        self.file = self.path if copy is None else copy
        if not self.file.exists():
            raise DataError(f"{self.file}: no such file; make one with wsi-idc prepare")
        if not (self.file.is_file() and h5py.is_hdf5(self.file)):
            raise DataError(f"{self.file}: not an HDF5 file; give a pack, a patch tree, or a zip")
        self._state = _state_of(self.file)
        try:
            with opened(self.file) as file:
                self.info, self.patients, self.index, offset = read_all_but_pixels(file)
        except (DataError, *UNREADABLE) as error:
            reason = first_line(error)
            raise DataError(f"{self.file}: not a usable pack ({reason}); make it anew") from None
        self._held = 0
        side = self.info.patch_px
        shape = (len(self.index), side, side, 3)
        try:
            self.patches: NDArray[np.uint8] = np.memmap(
                self.file, np.uint8, mode="r", offset=offset, shape=shape
            )
        except ValueError:
            raise DataError(f"{self.file}: the pack is cut short; make it anew") from None
        self.check_same()

    def __len__(self) -> int:
        return len(self.index)

    def __str__(self) -> str:
        return str(self.path) + ("" if self.file is self.path else f", read from {self.file}")

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return patches as ``patches[rows]``, without keeping hold of the file's pages for long.

        Pages once read count as this process's memory, up to the whole file. Given back they stay
        in the system's cache.
        """
        found = np.asarray(self.patches[rows])
        self._held += found.nbytes
        if self._held > _HELD_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._held = 0
            self.patches._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return found

    def __reduce__(self) -> tuple[type["Pack"], tuple[Path, Path | None]]:
        # A worker process opens the file itself.
        return Pack, (self.path, None if self.file is self.path else self.file)

    def check_same(self) -> None:
        """Raise where the file's name now leads to other data than were opened.

        Raises:
            DataError: It does.
        """
        if _state_of(self.file) != self._state:
            raise DataError(f"{self.file}: the pack was replaced or changed meanwhile; run again")

    def rows_of(self, patient: str) -> NDArray[np.int64]:
        """Return the positions of a patient's patches, one contiguous run.

        Raises:
            DataError: The pack has no such patient.
        """
        if patient not in self.patients:
            sample = ", ".join(self.patients[:5])
            raise DataError(
                f"no patient {patient!r} in {self.path}; it has {len(self.patients)}, such as "
                f"{sample}; wsi-idc info --json {self.path} lists them"
            )
        code = self.patients.index(patient)
        start, stop = np.searchsorted(self.index["patient"].to_numpy(), [code, code + 1])
        return np.arange(start, stop)

    @property
    def patient_of(self) -> NDArray[np.str_]:
        """Patient id of each patch, shape (N,)."""
        return np.array(self.patients)[self.index["patient"]]

    def cells(self) -> NDArray[np.int32]:
        """Return the cell of each patch on its patient's grid, shape (N, 2), row and column."""
        return cells_of(self.index[["x", "y"]].to_numpy(np.int32), patch_px=self.info.patch_px)

    def paths(self) -> list[str]:
        """Return the source path of each patch.

        Raises:
            DataError: They cannot be read.
        """
        self.check_same()
        try:
            with opened(self.file) as file:
                dataset = dataset_of(file, "path", shape=(len(self),))
                found = [str(path) for path in dataset.asstr(errors="surrogateescape")[:]]
        except UNREADABLE as error:
            raise DataError(f"{self.file}: /path cannot be read ({first_line(error)})") from None
        self.check_same()
        return found


def is_pack(path: Path) -> bool:
    """Return whether a file says of itself that it is a pack."""
    try:
        return path.is_file() and stated_format(path) == FORMAT
    except DataError:
        return False


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from others, None where it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def write_pack(
    path: Path,
    index: pd.DataFrame,
    pixels: Iterable[NDArray[np.uint8]],
    *,
    info: PackInfo,
    provenance: str,
) -> None:
    """Write a pack in one atomic step.

    Args:
        path: Where to.
        index: One row a patch, sorted, with columns path, patient (id), x, y, label, height,
            width.
        pixels: Blocks of patches in the same order, each of shape (n, patch_px, patch_px, 3).
        info: The pack's attributes.
        provenance: JSON text that says where it came from.
    """
    with replacing(path) as partial:
        offset = _write_all_but_pixels(partial, index, info=info, provenance=provenance)
        num = 0
        # Past HDF5, which takes four times as long and may crash on a full disk.
        with partial.open("r+b") as file:
            file.seek(offset)
            for block in pixels:
                file.write(np.ascontiguousarray(block).data)
                num += len(block)
        if num != len(index):
            raise ValueError(f"{num} patches for {len(index)} rows")


def _write_all_but_pixels(
    path: Path, index: pd.DataFrame, *, info: PackInfo, provenance: str
) -> int:
    """Write a pack with room for its pixels; return the byte at which they begin."""
    patients = sorted(index["patient"].unique())
    codes = pd.Categorical(index["patient"], categories=patients).codes
    with h5py.File(path, "w", locking=False) as file:
        text = h5py.string_dtype()
        file["patients"] = np.array(patients, dtype=text)
        file["patient"] = codes.astype(np.int32)
        for name, dtype in COLUMNS.items():
            file[name] = index[name].to_numpy(dtype)
        file["path"] = np.array(index["path"], dtype=text)
        attributes = vars(info) | {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "class_names": list(info.class_names),
            "provenance": provenance,
            "complete": 1,
        }
        file.attrs.update(attributes)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((len(index), info.patch_px, info.patch_px, 3))
        patches = h5py.h5d.create(file.id, b"patches", h5py.h5t.NATIVE_UINT8, space, layout)
        return int(patches.get_offset())
