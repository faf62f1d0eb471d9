"""Writer of packs."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.core.files import atomic_write
from wsi_idc.data.pack import COLUMNS, FORMAT, FORMAT_VERSION, PackInfo


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
        index: One row per patch, sorted, with columns path, patient (id), x, y, label, height,
            width.
        pixels: Blocks of patches in the same order, each of shape (n, patch_px, patch_px, 3).
        info: Attributes of the pack.
        provenance: JSON text with the source and the program version.
    """
    with atomic_write(path) as partial:
        offset = _write_all_but_pixels(partial, index, info=info, provenance=provenance)
        num = 0
        # Without HDF5, which takes four times as long and may crash on a full disk.
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
    """Write a pack with space for its pixels; return their byte offset."""
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
