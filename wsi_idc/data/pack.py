"""The pack: one HDF5 file with the decoded pixels of every patch of a data set.

Patches are sorted by patient, then slide, row and column. Therefore the patches of a patient are
one contiguous slice. A pack of version 1 was made from a patch tree. A pack of version 2 was made
from slides, and has a record of each slide. The pixels are contiguous, uncompressed and
memory-mapped. Therefore no HDF5 handle stays open, and the disk need not support file locks.
"""

import errno
import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from wsi_idc.core.text import count
from wsi_idc.data.packed_slides import (
    Overview,
    PackedSlide,
    read_overview,
    read_slides,
    rows_of_slides,
    write_slides,
)
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE, cells_of, corners_of

FORMAT = "wsi-idc-pack"
FORMAT_VERSION = 1  # of a pack that was made from a patch tree
SLIDES_VERSION = 2  # of a pack that was made from slides
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
        mpp_source: Origin of ``mpp``. For a patch tree: "given" (by the user) or "assumed". For
            slides: "resampled".
        source_fingerprint: Hexadecimal SHA-256 of the patients, positions, labels and checksums.
        class_names: Names of class 0 and 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_px: int
    mpp: float
    mpp_source: str
    source_fingerprint: str
    class_names: tuple[str, ...] = CLASS_NAMES


def _read_all_but_pixels(
    file: h5py.File,
) -> tuple[PackInfo, list[str], list[PackedSlide], pd.DataFrame, int]:
    """Check a pack, and read all but the pixels.

    Returns:
        Attributes, patient ids, slides, index, and the byte offset of the pixels in the file.
    """
    attrs = hdf5.read_attributes(file)
    if str(attrs.get("format")) != FORMAT:
        raise ValueError("it is HDF5, but not a pack")
    version = int(attrs["format_version"])
    if version not in (FORMAT_VERSION, SLIDES_VERSION):
        raise ValueError(f"format version {version}, not {FORMAT_VERSION} or {SLIDES_VERSION}")
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
    limits = {"label": (-1, 1), "height": (1, side), "width": (1, side)}
    limits |= {"x": (0, 2**31 - 1), "y": (0, 2**31 - 1)}
    specs = {name: DatasetSpec(dtype, (num,), limits[name]) for name, dtype in COLUMNS.items()}
    codes_of = ("patient", "slide") if version == SLIDES_VERSION else ("patient",)
    specs = {name: DatasetSpec("i4", (num,)) for name in codes_of} | specs
    index = pd.DataFrame(hdf5.read_datasets(file, specs))
    codes = index["patient"].to_numpy()
    if codes[0] != 0 or not np.isin(np.diff(codes), (0, 1)).all():
        raise ValueError("the values of /patient must start at 0 and increase by 0 or 1")
    names = hdf5.read_dataset(file, "patients", DatasetSpec("text", (int(codes[-1]) + 1,)))
    patients = [safe_filename(name) for name in names]
    if sorted(set(patients)) != patients:
        raise ValueError("/patients are not sorted or not unique")
    slides = []
    if version == SLIDES_VERSION:
        slides = read_slides(file, index)
    else:
        index["slide"] = index["patient"]
    _check_positions(index, slides, info)
    return info, patients, slides, index, int(offset)


def _check_positions(index: pd.DataFrame, slides: list[PackedSlide], info: PackInfo) -> None:
    """Raise ValueError if a patch is not on the grid of its slide, or if a grid is too large."""
    xy = index[["x", "y"]].to_numpy()
    row_col = _cells(index, slides, info)
    expected = row_col[:, ::-1] * info.patch_px
    for code, rows in rows_of_slides(index, slides):
        expected[rows] = corners_of(
            row_col[rows], stride_px=info.patch_px, mpp=info.mpp, slide_mpp=slides[code].mpp
        )
    if (expected != xy).any():
        raise ValueError("/x and /y are not on a grid of patches")
    if row_col.max() >= MAX_CELLS_PER_SIDE:
        raise ValueError(f"a grid has more than {MAX_CELLS_PER_SIDE} cells in a row or column")
    if index.duplicated(["slide", "x", "y"]).any():
        raise ValueError("two patches of a patient have the same position")


def _cells(index: pd.DataFrame, slides: list[PackedSlide], info: PackInfo) -> NDArray[np.int32]:
    """Compute the row and the column of each patch; see ``Pack.cells``."""
    xy = index[["x", "y"]].to_numpy(np.int32)
    if not slides:
        return cells_of(xy, patch_px=info.patch_px)
    cells_per_px = np.array([slide.mpp for slide in slides]) / (info.patch_px * info.mpp)
    cells = xy[:, ::-1] * cells_per_px[index["slide"].to_numpy(), None]
    return np.rint(cells).astype(np.int32)


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
        raise ValueError(f"{len(info.class_names)} class names, not {len(CLASS_NAMES)}")
    return info


class Pack:
    """An open pack: the index is in memory, and the pixels are memory-mapped.

    Args:
        path: Pack file.
        copy: Copy of the pack file on a faster disk. If it is given, the copy is read.

    Attributes:
        path: Pack file as the user gave it, for messages and records.
        file: File that is read: ``path``, or the copy of the pack.
        info: Attributes of the pack.
        patients: Sorted patient ids.
        slides: Slides of the patches, sorted by patient and name; empty for a pack of a patch tree.
        index: One row per patch. The column ``patient`` is an index in ``patients``. The column
            ``slide`` is an index in ``slides``; for a pack of a patch tree, it is equal to
            ``patient``. The columns ``x`` and ``y`` are px of level 0 and start at 0. The other
            columns are ``label``, and ``height`` and ``width`` of the patch in px before padding.

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
                content = _read_all_but_pixels(file)
            self.info, self.patients, self.slides, self.index, offset = content
            shape = (len(self.index), self.info.patch_px, self.info.patch_px, 3)
            self._pixels = np.memmap(self.file, np.uint8, "r", offset, shape)
        except (DataError, *hdf5.UNREADABLE) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError from None
            reason = first_line(error)
            raise DataError(f"{self.file}: not a usable pack ({reason}); make it again") from None
        self._code_of = {patient: code for code, patient in enumerate(self.patients)}
        codes = np.arange(len(self.patients) + 1)
        self._first_rows = np.searchsorted(self.index["patient"].to_numpy(), codes)  # of patients
        self._mapped_bytes = 0
        self.check_same()

    def __len__(self) -> int:
        return len(self.index)

    def __str__(self) -> str:
        return str(self.path) + ("" if self.file is self.path else f", read from {self.file}")

    @property
    def patches(self) -> NDArray[np.uint8]:
        """Pixels of all patches, shape (N, patch_px, patch_px, 3), uint8, memory-mapped, read-only.

        Raises:
            DataError: The file was truncated. Reading a truncated file could kill the process.
        """
        pixels = self._pixels
        if pixels._mmap.size() < pixels.offset + pixels.nbytes:  # type: ignore[attr-defined]
            raise DataError(f"{self.file}: the pack was truncated while open; make it again")
        return pixels

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the patches in ``rows`` into memory; release pages of the file after every 32 MB.

        The pages of the file that were read count as memory of this process until they are
        released. Released pages stay in the cache of the system.
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
            raise DataError(f"{self.file}: the pack was changed while open; run the command again")

    def rows_of(self, patient: str, slide: str | None = None) -> NDArray[np.int64]:
        """Return the rows of a patient, or of one slide of the patient; the rows are consecutive.

        Raises:
            DataError: The pack has no such patient, or the patient has no such slide.
        """
        if patient not in self._code_of:
            sample = ", ".join(self.patients[:5])
            raise DataError(
                f"no patient {patient!r} in {self.path}; it has "
                f"{count(len(self.patients), 'patient')}, such as {sample}; "
                f"wsi-idc info --json {self.path} lists all patients"
            )
        code = self._code_of[patient]
        rows = np.arange(self._first_rows[code], self._first_rows[code + 1])
        if slide is None:
            return rows
        codes = self.index["slide"].to_numpy()[rows]
        code_of = {self.slides[code].name: code for code in np.unique(codes)}
        if slide not in code_of:
            listed = ", ".join(code_of)
            raise DataError(f"patient {patient} has no slide {slide!r}; the slides are {listed}")
        return rows[codes == code_of[slide]]

    @property
    def patient_of(self) -> NDArray[np.str_]:
        """Patient id of each patch, shape (N,)."""
        return np.array(self.patients)[self.index["patient"]]

    def slides_of(self, patient: str) -> list[PackedSlide]:
        """Return the slides of a patient, sorted by name; empty for a pack of a patch tree."""
        if not self.slides:
            return []
        codes = np.unique(self.index["slide"].to_numpy()[self.rows_of(patient)])
        return [self.slides[code] for code in codes]

    def overview(self, code: int) -> Overview:
        """Read the thumbnail and the tissue mask of the slide ``slides[code]``.

        Raises:
            DataError: The thumbnail or the mask is damaged.
        """
        with self._open() as file:
            return read_overview(file, code)

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        """Context manager: open the pack file again; raise DataError if it is damaged."""
        self.check_same()
        try:
            with hdf5.open_hdf5(self.file) as file:
                yield file
        except hdf5.UNREADABLE as error:
            raise DataError(f"{self.file}: a part cannot be read ({first_line(error)})") from None
        self.check_same()

    def cells(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.int32]:
        """Return the row and the column of each patch, or of the patches ``rows``, shape (N, 2).

        The patches of a slide are on one grid. In a pack of a patch tree, the patches of a patient
        are on one grid.
        """
        index = self.index if rows is None else self.index.iloc[rows]
        return _cells(index, self.slides, self.info)

    def paths(self) -> list[str]:
        """Return the source path of each patch.

        In a pack of slides, this is the path of the slide. In a pack of a patch tree, this is the
        path of the patch in the tree.

        Raises:
            DataError: The paths of a patch tree cannot be read.
        """
        if self.slides:
            return [self.slides[code].path for code in self.index["slide"]]
        with self._open() as file:
            dataset = hdf5.check_dataset(file, "path", DatasetSpec("text", (len(self),)))
            return [str(path) for path in dataset.asstr(errors="surrogateescape")[:]]


def check_num_patches(num: int) -> None:
    """Raise DataError if ``num`` patches are too many for one pack."""
    if num > MAX_PATCHES:
        raise DataError(f"{num} patches are more than {MAX_PATCHES}; make several packs")


def write_pack(
    path: Path,
    index: pd.DataFrame,
    pixels: Iterable[NDArray[np.uint8]],
    *,
    info: PackInfo,
    provenance: str,
    slides: Sequence[PackedSlide] = (),
    overviews: Iterable[Overview] = (),
) -> None:
    """Write a pack in one atomic step.

    Args:
        path: File to write.
        index: Sorted table of the patches with the columns patient (id), x, y, label, height and
            width. For a patch tree, the table also has the column path. For slides, the table also
            has the column slide (index in ``slides``).
        pixels: Blocks of patches in the order of ``index``. A block has the shape (n, patch_px,
            patch_px, 3).
        info: Attributes of the pack.
        provenance: JSON text with the source and the program version.
        slides: Slides of the patches. Each slide must have at least one patch.
        overviews: Overview of each slide: thumbnail and tissue mask.
    """
    check_num_patches(len(index))
    patients = sorted(index["patient"].unique())
    codes = pd.Categorical(index["patient"], categories=patients).codes
    attributes = vars(info) | {"class_names": list(info.class_names), "format": FORMAT}
    version = SLIDES_VERSION if slides else FORMAT_VERSION
    attributes |= {"format_version": version, "provenance": provenance, "complete": 1}
    with atomic_write(path) as partial:
        with hdf5.create_hdf5(partial) as file:
            text = h5py.string_dtype()
            file["patients"] = np.array(patients, dtype=text)
            file["patient"] = codes.astype(np.int32)
            for name, dtype in COLUMNS.items():
                file[name] = index[name].to_numpy(dtype)
            if slides:
                file["slide"] = index["slide"].to_numpy(np.int32)
                write_slides(file.create_group("slides"), slides, overviews)
            else:
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
            raise ValueError(f"pixels of {num} patches for an index of {len(index)} rows")


def is_pack(path: Path) -> bool:
    """Return whether a file is a pack; only the attribute ``format`` of the file is checked."""
    return hdf5.has_format(path, FORMAT)


def has_slide_records(path: Path) -> bool:
    """Return whether a pack was made from slides; return False for a damaged file."""
    try:
        with hdf5.open_hdf5(path) as file:
            return int(hdf5.read_attributes(file).get("format_version", 0)) == SLIDES_VERSION
    except hdf5.UNREADABLE:
        return False


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change when a file is replaced or changed; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
