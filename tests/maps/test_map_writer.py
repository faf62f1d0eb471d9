import os
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from tests.small_maps import big_map, small_map
from wsi_idc.core.hdf5 import OutputFile
from wsi_idc.maps.disk_array import DiskArray
from wsi_idc.maps.map_writer import image_bytes, write_map


def on_disk(values: np.ndarray, folder: Path) -> DiskArray:
    array = DiskArray(folder)
    for block in np.array_split(values, 50):
        array.append(block)
    return array


def test_cams_and_pixels_on_disk_give_the_same_map_in_little_memory(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("wsi_idc.maps.map_writer._BLOCK_BYTES", 2**20)
    expected = big_map(6000, cols=20)
    write_map(tmp_path / "a.h5", expected)
    parts = {name: on_disk(getattr(expected, name), tmp_path) for name in ("cam", "patches")}
    found = replace(expected, **parts)
    tracemalloc.start()
    write_map(tmp_path / "b.h5", found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert (tmp_path / "b.h5").stat().st_size > 45e6
    assert peak < 8e6


def test_planned_size_of_the_picture_is_that_of_the_file(tmp_path: Path):
    # Two patches far apart: the chunks between them are not in the file.
    cells = np.array([[0, 0], [9, 30]])
    patient_map = small_map(cells)
    write_map(tmp_path / "m.h5", patient_map)
    with h5py.File(tmp_path / "m.h5") as file:
        size = file["image/rgb"].id.get_storage_size()
    assert image_bytes(patient_map) == size == 2 * (10 * 10 * 8 * 3)


def test_the_file_operations_of_a_map_are_few(tmp_path: Path, monkeypatch):
    """A map needs two syncs (file, folder), one rename, and small writes only of HDF5's tables."""
    counts: Counter = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((os, "fsync"), (Path, "replace"), (OutputFile, "write")):
        count(owner, name)
    write_map(tmp_path / "small.h5", small_map(np.array([[0, 0], [0, 1]])))
    assert counts == {"fsync": 2, "replace": 1, "write": counts["write"]}
    small = counts.pop("write")
    assert small <= 90
    counts.clear()
    write_map(tmp_path / "large.h5", big_map(600, cols=20))
    assert (counts["fsync"], counts["replace"]) == (2, 1)
    assert counts["write"] <= small + 600 // 4  # a chunk of the picture has up to 8 patches
