"""The pack: one HDF5 file with the decoded pixels of every patch of a data set.

Patches are sorted by patient, then row, then column, so that the patches of a patient are one
contiguous slice. The pixels are contiguous and uncompressed, and are memory-mapped. Therefore no
HDF5 handle stays open or is shared with a worker process, and the disk need not support file locks.
"""

import errno
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core import hdf5
from wsi_idc.core.constants import CLASS_NAMES, POSSIBLE_MPP
from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import atomic_write, safe_filename
from wsi_idc.core.hdf5 import DatasetSpec
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE, cells_of

FORMAT = "wsi-idc-pack"
FORMAT_VERSION = 1
MAX_PATCHES = 20_000_000  # the index of a pack takes about 50 bytes of memory for each patch
MAX_PATCH_PX = 255  # the datasets /height and /width are uint8
_MAX_MAPPED_BYTES = 2**25
COLUMNS = {"x": "i4", "y": "i4", "label": "i1", "height": "u1", "width": "u1"}


@dataclass(frozen=True)
class PackInfo:
    """Attributes of a pack.

    Attributes:
        mean: Mean of each channel over all patches with their padding, 0..1.
        std: Standard deviation of each channel over all patches with their padding, 0..1.
        patch_px: Side of a patch in px.
        mpp: Microns per pixel of the patches.
        mpp_source: "given" if the user gave ``mpp``, else "assumed".
        source_fingerprint: SHA-256 (hex) of patient, position, label and CRC-32 of every file.
        class_names: Names of class 0 and 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_px: int
    mpp: float
    mpp_source: str
    source_fingerprint: str
    class_names: tuple[str, ...] = CLASS_NAMES


def _read_all_but_pixels(file: h5py.File) -> tuple[PackInfo, list[str], pd.DataFrame, int]:
    """Check a pack; return its attributes, patient ids, index and byte offset of the pixels."""
    attrs = hdf5.read_attributes(file)
    if str(attrs.get("format")) != FORMAT:
        raise ValueError("it is HDF5, but not a pack")
    if int(attrs["format_version"]) != FORMAT_VERSION:
        raise ValueError(f"format version {attrs['format_version']}, not {FORMAT_VERSION}")
    if int(attrs["complete"]) != 1:
        raise ValueError("it is not complete")
    info = _read_info(attrs)
    side = info.patch_px
    patches = hdf5.check_dataset(file, "patches", DatasetSpec("u1", (None, side, side, 3)))
    num, offset = patches.shape[0], patches.id.get_offset()
    if offset is None:
        raise ValueError("/patches is not contiguous")
    # Check the number of patches before memory is allocated for a column of the index.
    if num > MAX_PATCHES:
        raise ValueError(f"{num} patches are more than {MAX_PATCHES}")
    if num == 0 or offset + patches.nbytes > Path(file.filename).stat().st_size:
        raise ValueError(f"it has no patches, or is too short for {num} patches")
    last_px = MAX_CELLS_PER_SIDE * side - 1
    limits = {"label": (-1, 1), "height": (1, side), "width": (1, side)}
    limits |= {"x": (0, last_px), "y": (0, last_px)}
    specs = {name: DatasetSpec(dtype, (num,), limits[name]) for name, dtype in COLUMNS.items()}
    index = pd.DataFrame(hdf5.read_datasets(file, {"patient": DatasetSpec("i4", (num,)), **specs}))
    codes = index["patient"].to_numpy()
    if codes[0] != 0 or not np.isin(np.diff(codes), (0, 1)).all():
        raise ValueError("the values of /patient must start at 0 and increase by 0 or 1")
    names = hdf5.read_dataset(file, "patients", DatasetSpec("text", (int(codes[-1]) + 1,)))
    patients = [safe_filename(name) for name in names]
    if sorted(set(patients)) != patients:
        raise ValueError("/patients are not sorted or not unique")
    if (index[["x", "y"]].to_numpy() % side).any():
        raise ValueError("/x and /y are not on a grid of patches")
    if index.duplicated(["patient", "x", "y"]).any():
        raise ValueError("two patches of a patient have the same position")
    return info, patients, index, int(offset)


def _read_info(attrs: dict[str, Any]) -> PackInfo:
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (attrs["mean"], attrs["std"]))
    info = PackInfo(
        mean=mean,
        std=std,
        patch_px=int(attrs["patch_px"]),
        mpp=float(attrs["mpp"]),
        mpp_source=str(attrs["mpp_source"]),
        source_fingerprint=str(attrs["source_fingerprint"]),
        class_names=tuple(str(name) for name in attrs["class_names"]),
    )
    if not all(0 <= value <= 1 for value in (*info.mean, *info.std)):
        raise ValueError("mean and std are not within 0..1")
    finest, coarsest = POSSIBLE_MPP
    if not (1 <= info.patch_px <= MAX_PATCH_PX and finest <= info.mpp <= coarsest):
        raise ValueError(f"patches of {info.patch_px} px at {info.mpp} um/px are impossible")
    if len(info.class_names) != len(CLASS_NAMES):
        raise ValueError(f"{len(info.class_names)} class names")
    return info


class Pack:
    """An open pack: the index is in memory, and the pixels are memory-mapped.

    Args:
        path: Pack file.
        copy: Copy of the pack file on a faster disk; the copy is read instead of ``path``.

    Attributes:
        path: Pack file that messages and records name.
        file: Pack file that is read: ``path`` or its copy.
        info: Attributes of the pack.
        patients: Sorted patient ids.
        index: One row per patch with columns ``patient`` (index in ``patients``), ``x``, ``y``
            (px, 0-based), ``label``, ``height``, ``width`` (px before padding).

    Raises:
        DataError: The file is not a complete pack.
        MemoryError: The address space of the process is too small for the pixels.
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
            with hdf5.open_hdf5(self.file) as file:
                self.info, self.patients, self.index, offset = _read_all_but_pixels(file)
            shape = (len(self.index), self.info.patch_px, self.info.patch_px, 3)
            self._pixels = np.memmap(self.file, np.uint8, "r", offset, shape)
        except (DataError, *hdf5.UNREADABLE) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError from None
            reason = first_line(error)
            raise DataError(f"{self.file}: not a usable pack ({reason}); make it again") from None
        self._mapped_bytes = 0
        self.check_same()

    def __len__(self) -> int:
        return len(self.index)

    def __str__(self) -> str:
        return str(self.path) + ("" if self.file is self.path else f", read from {self.file}")

    @property
    def patches(self) -> NDArray[np.uint8]:
        """Pixels, shape (N, patch_px, patch_px, 3), uint8, memory-mapped, read-only.

        Raises:
            DataError: The file was truncated. Without this check, SIGBUS could kill the process.
        """
        pixels = self._pixels
        if pixels._mmap.size() < pixels.offset + pixels.nbytes:  # type: ignore[attr-defined]
            raise DataError(f"{self.file}: the pack was truncated while open; make it again")
        return pixels

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return ``patches[rows]``; release the file's memory pages after every 32 MB.

        Each page that was read belongs to the memory of this process until its release.
        Released pages stay in the cache of the system.
        """
        pixels = np.asarray(self.patches[rows])
        self._mapped_bytes += pixels.nbytes
        if self._mapped_bytes > _MAX_MAPPED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped_bytes = 0
            self._pixels._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return pixels

    def __reduce__(self) -> tuple[type["Pack"], tuple[Path, Path | None]]:
        # A worker process opens the file itself.
        return Pack, (self.path, None if self.file is self.path else self.file)

    def check_same(self) -> None:
        """Raise DataError if the pack file was replaced or changed after this process opened it."""
        if _state_of(self.file) != self._state:
            raise DataError(f"{self.file}: the pack was replaced or changed while open; run again")

    def rows_of(self, patient: str) -> NDArray[np.int64]:
        """Return the consecutive rows of a patient; raise DataError for an unknown patient."""
        if patient not in self.patients:
            sample = ", ".join(self.patients[:5])
            raise DataError(
                f"no patient {patient!r} in {self.path}; it has {len(self.patients)} patients, "
                f"such as {sample}; wsi-idc info --json {self.path} lists all patients"
            )
        return np.flatnonzero(self.index["patient"] == self.patients.index(patient))

    @property
    def patient_of(self) -> NDArray[np.str_]:
        """Patient id of each patch, shape (N,)."""
        return np.array(self.patients)[self.index["patient"]]

    def cells(self) -> NDArray[np.int32]:
        """Return row and column of each patch on the grid of its patient, shape (N, 2)."""
        return cells_of(self.index[["x", "y"]].to_numpy(np.int32), patch_px=self.info.patch_px)

    def paths(self) -> list[str]:
        """Return the path of each patch in its patch tree; raise DataError for unreadable paths."""
        self.check_same()
        try:
            with hdf5.open_hdf5(self.file) as file:
                dataset = hdf5.check_dataset(file, "path", DatasetSpec("text", (len(self),)))
                paths = [str(path) for path in dataset.asstr(errors="surrogateescape")[:]]
        except hdf5.UNREADABLE as error:
            raise DataError(
                f"{self.file}: dataset /path cannot be read ({first_line(error)})"
            ) from None
        self.check_same()
        return paths


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
        path: File to write.
        index: Sorted table of the patches: path, patient (id), x, y, label, height, width.
        pixels: Blocks of patches in the order of ``index``, shape (n, patch_px, patch_px, 3) each.
        info: Attributes of the pack.
        provenance: JSON text with the source and the program version.
    """
    if len(index) > MAX_PATCHES:
        raise DataError(f"{len(index)} patches are more than {MAX_PATCHES}; make several packs")
    patients = sorted(index["patient"].unique())
    codes = pd.Categorical(index["patient"], categories=patients).codes
    attributes = vars(info) | {"class_names": list(info.class_names), "format": FORMAT}
    attributes |= {"format_version": FORMAT_VERSION, "provenance": provenance, "complete": 1}
    with atomic_write(path) as partial:
        with h5py.File(partial, "w", locking=False) as file:
            text = h5py.string_dtype()
            file["patients"] = np.array(patients, dtype=text)
            file["patient"] = codes.astype(np.int32)
            for name, dtype in COLUMNS.items():
                file[name] = index[name].to_numpy(dtype)
            file["path"] = np.array(index["path"], dtype=text)
            file.attrs.update(attributes)
            # Reserve space for the pixels.
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((len(index), info.patch_px, info.patch_px, 3))
            patches = h5py.h5d.create(file.id, b"patches", h5py.h5t.NATIVE_UINT8, space, layout)
            offset = patches.get_offset()
        num = 0
        # Write pixels without HDF5: HDF5 takes four times as long, and may crash on a full disk.
        with partial.open("r+b") as file:
            file.seek(offset)
            for block in pixels:
                file.write(np.ascontiguousarray(block).data)
                num += len(block)
        if num != len(index):
            raise ValueError(f"{num} patches for {len(index)} rows")


def is_pack(path: Path) -> bool:
    """Return whether the attribute ``format`` of a file names the format of a pack."""
    return hdf5.has_format(path, FORMAT)


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change when a file is replaced or changed; None without a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
