"""Read a pack, and check all that it says: it may be damaged, or come from anyone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from wsi_idc.core.errors import DataError, first_line
from wsi_idc.core.files import plain_name
from wsi_idc.core.hdf5 import attributes, check_heaps
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE
from wsi_idc.training.config import POSSIBLE_MPP

FORMAT = "wsi-idc-pack"
FORMAT_VERSION = 1
CLASS_NAMES = ("non-IDC", "IDC")
MAX_PATCH_PX = 255  # /height and /width are uint8
COLUMNS = {"x": "i4", "y": "i4", "label": "i1", "height": "u1", "width": "u1"}
# What h5py raises at a file that is damaged, or made to deceive.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)


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


def opened(path: Path) -> h5py.File:
    """Open an HDF5 file for reading."""
    check_heaps(path)
    # A reader asks for no lock: many network disks have none.
    return h5py.File(path, "r", locking=False)


def stated_format(path: Path) -> str:
    """Return what an HDF5 file says that it is, an empty text where it says nothing.

    Raises:
        DataError: HDF5 cannot read it, so it may have been anything.
    """
    try:
        with opened(path) as file:
            return str(attributes(file).get("format", ""))
    except UNREADABLE as error:
        raise DataError(
            f"{path}: HDF5 cannot read it ({first_line(error)}); make it anew, or remove it"
        ) from None


def read_all_but_pixels(file: h5py.File) -> tuple[PackInfo, list[str], pd.DataFrame, int]:
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
    patches = dataset_of(file, "patches", shape=(None, side, side, 3), dtype="u1")
    num, offset = patches.shape[0], patches.id.get_offset()
    if offset is None:
        raise ValueError("/patches is not contiguous")
    # Before any column is read: what the file cannot hold must not be allocated.
    if num == 0 or offset + patches.nbytes > Path(file.filename).stat().st_size:
        raise ValueError(f"it is cut short, or has no room for {num} patches")
    columns = {
        name: dataset_of(file, name, shape=(num,), dtype=dtype)[:]
        for name, dtype in {"patient": "i4", **COLUMNS}.items()
    }
    index = pd.DataFrame(columns)
    codes = columns["patient"]
    if codes[0] != 0 or not np.isin(np.diff(codes), (0, 1)).all():
        raise ValueError("/patient is not sorted into /patients")
    names = dataset_of(file, "patients", shape=(int(codes[-1]) + 1,))
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


def dataset_of(
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
