"""The pack: one HDF5 file that holds every patch of a data set, decoded.

Patches are sorted by patient, then row, then column, so that a patient is one contiguous slice.
The pixels are contiguous and uncompressed, so a reader memory-maps them: no HDF5 handle stays
open, none is shared with a worker process, and a disk without file locks does no harm.
"""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.config import POSSIBLE_MPP
from wsi_idc.errors import DataError, first_line
from wsi_idc.files import plain_name, replacing
from wsi_idc.hdf5_check import attributes, check_heaps
from wsi_idc.maps.grid import MAX_CELLS_PER_SIDE, cells_of

FORMAT = "wsi-idc-pack"
FORMAT_VERSION = 1
CLASS_NAMES = ("non-IDC", "IDC")
_HELD_BYTES = 2**25
MAX_PATCH_PX = 255  # /height and /width are uint8
_COLUMNS = {"x": "i4", "y": "i4", "label": "i1", "height": "u1", "width": "u1"}
# What h5py raises at a file that is damaged, or made to deceive.
_UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class PackInfo:
    """A pack's attributes.

    Attributes:
        mean: Mean of each channel over all patches as stored, 0..1.
        std: Standard deviation of each channel over all patches as stored, 0..1.
        patch_px: Side of a patch in px.
        mpp: Microns per pixel of the patches.
        mpp_source: "assumed" or "given".
        source_fingerprint: SHA-256 over patient, place, label and bytes of every file, as hex.
        class_names: Names of class 0 and 1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_px: int
    mpp: float
    mpp_source: str
    source_fingerprint: str
    class_names: tuple[str, ...] = CLASS_NAMES


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
        try:
            with _opened(self.file) as file:
                self.info, self.patients, self.index, offset = _read(file)
        except (DataError, *_UNREADABLE) as error:
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
        try:
            with _opened(self.file) as file:
                dataset = _dataset(file, "path", shape=(len(self),))
                return [str(path) for path in dataset.asstr(errors="surrogateescape")[:]]
        except _UNREADABLE as error:
            raise DataError(f"{self.file}: /path cannot be read ({first_line(error)})") from None


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
        for name, dtype in _COLUMNS.items():
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


def _opened(path: Path) -> h5py.File:
    check_heaps(path)
    # A reader asks for no lock: many network disks have none.
    return h5py.File(path, "r", locking=False)


def is_pack(path: Path) -> bool:
    """Return whether a file says of itself that it is a pack."""
    if not path.is_file():
        return False
    try:
        with _opened(path) as file:
            return str(attributes(file).get("format")) == FORMAT
    except _UNREADABLE:
        return False


def _read(file: h5py.File) -> tuple[PackInfo, list[str], pd.DataFrame, int]:
    """Read and check everything but the pixels; return the byte offset of those too."""
    attrs = attributes(file)
    if str(attrs.get("format")) != FORMAT:
        raise ValueError("it is HDF5, but not a pack")
    if int(attrs["format_version"]) != FORMAT_VERSION:
        raise ValueError(f"format version {attrs['format_version']}, not {FORMAT_VERSION}")
    if int(attrs["complete"]) != 1:
        raise ValueError("it is not complete")
    info = _read_info(attrs)
    side = info.patch_px
    patches = _dataset(file, "patches", shape=(None, side, side, 3), dtype="u1")
    num, offset = patches.shape[0], patches.id.get_offset()
    if offset is None:
        raise ValueError("/patches is not contiguous")
    # Before any column is read: what the file cannot hold must not be allocated.
    if num == 0 or offset + patches.nbytes > Path(file.filename).stat().st_size:
        raise ValueError(f"it is cut short, or has no room for {num} patches")
    columns = {
        name: _dataset(file, name, shape=(num,), dtype=dtype)[:]
        for name, dtype in {"patient": "i4", **_COLUMNS}.items()
    }
    index = pd.DataFrame(columns)
    codes = columns["patient"]
    if codes[0] != 0 or not np.isin(np.diff(codes), (0, 1)).all():
        raise ValueError("/patient is not sorted into /patients")
    names = _dataset(file, "patients", shape=(int(codes[-1]) + 1,))
    patients = [plain_name(str(name)) for name in names.asstr()[:]]
    _check_index(index, patients, patch_px=side)
    return info, patients, index, int(offset)


def _read_info(attrs: dict[str, Any]) -> PackInfo:
    """Read and check the attributes."""
    red, green, blue = (float(value) for value in attrs["mean"])
    std_red, std_green, std_blue = (float(value) for value in attrs["std"])
    info = PackInfo(
        mean=(red, green, blue),
        std=(std_red, std_green, std_blue),
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
        raise ValueError(f"patches of {info.patch_px} px of {info.mpp} um")
    if len(info.class_names) != len(CLASS_NAMES):
        raise ValueError(f"{len(info.class_names)} class names")
    return info


def _dataset(
    file: h5py.File, name: str, *, shape: tuple[int | None, ...], dtype: str | None = None
) -> Any:
    """Return the data set ``name`` if its data lie in this very file.

    Raises:
        ValueError: It is not there, lies elsewhere, or has another shape or type; None in ``shape``
            is any length, None as ``dtype`` is text.
    """
    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"/{name} is not a data set of this file")
    if dataset.dtype != (h5py.string_dtype() if dtype is None else np.dtype(dtype)):
        raise ValueError(f"/{name} is of type {dataset.dtype}")
    fits = len(dataset.shape) == len(shape) and all(
        wanted in (None, has) for wanted, has in zip(shape, dataset.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"/{name} is of shape {dataset.shape}")
    return dataset


def _check_index(index: pd.DataFrame, patients: list[str], *, patch_px: int) -> None:
    """Raise ValueError where the columns contradict each other."""
    if sorted(set(patients)) != patients:
        raise ValueError("/patients are not sorted or not unique")
    xy = index[["x", "y"]].to_numpy()
    if (xy % patch_px).any() or xy.min() < 0 or xy.max() >= MAX_CELLS_PER_SIDE * patch_px:
        raise ValueError("/x and /y are not on a grid of patches")
    if index.duplicated(["patient", "x", "y"]).any():
        raise ValueError("two patches of a patient at one place")
    sides = index[["height", "width"]].to_numpy()
    if sides.min() < 1 or sides.max() > patch_px:
        raise ValueError(f"/height or /width is not 1 to {patch_px}")
    if not index["label"].isin([-1, 0, 1]).all():
        raise ValueError("/label is not -1, 0 or 1")
