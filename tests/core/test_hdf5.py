import os
import re
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_idc.core import hdf5
from wsi_idc.core.errors import DataError
from wsi_idc.core.hdf5 import DatasetSpec, _check_heaps, open_hdf5, read_attributes, read_datasets
from wsi_idc.data.pack import Pack

SIGNATURE = b"GCOL\x01\0\0\0"
TEXT_TYPE = b"\x19\x01\x01\x00\x10\0\0\0"  # class 9 (of any length), kind 1 (text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with datasets of every kind."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.arange(3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["format"] = "ours"
        file["label"] = np.array([-1, 0, 1], np.int8)
        file["group/value"] = np.array([0.5, np.nan, 1.0])
        file["names"] = ["a", "b", "c"]
        file["fixed"] = np.array([b"a", b"b"])
        file["complex"] = np.zeros(3, complex)
        file["external link"] = h5py.ExternalLink("other.h5", "/x")
        file["linked group"] = h5py.ExternalLink("other.h5", "/")
        file["soft link"] = h5py.SoftLink("/label")
        file.create_dataset("huge", (2**40,), "u1", chunks=(2**20,))
        file.create_dataset("external", (3,), "u1", external=[(tmp_path / "a.bin", 0, 3)])
        layout = h5py.VirtualLayout((3,), "i8")
        layout[...] = h5py.VirtualSource(tmp_path / "other.h5", "x", (3,))
        file.create_virtual_dataset("virtual", layout)
    return tmp_path / "a.h5"


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DataError, match="not a regular file"):
            hdf5.read_format(path)


def test_datasets_are_read_by_a_table(path: Path):
    specs = {
        "label": DatasetSpec("i1", (3,), (-1, 1)),
        "group/value": DatasetSpec("number", ((1, 5),)),
        "names": DatasetSpec(("i8", "text"), (None,)),
        "missing": DatasetSpec("number", (3,), is_optional=True),
    }
    with open_hdf5(path) as file:
        datasets = read_datasets(file, specs)
        assert hdf5.read_dataset(file["group"], "value", specs["group/value"])[0] == 0.5
    assert list(datasets) == ["label", "group/value", "names"]
    assert datasets["label"].tolist() == [-1, 0, 1]
    assert datasets["names"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("missing", DatasetSpec("number", (3,)), "/missing is not a dataset of this file"),
        ("label/x", DatasetSpec("number", (3,)), "/label/x is not a dataset of this file"),
        ("group", DatasetSpec("number", (3,)), "/group is not a dataset of this file"),
        *(
            (name, DatasetSpec("number", (3,), is_optional=True), "is not a dataset of this file")
            for name in ("external link", "linked group/x", "soft link", "virtual", "external")
        ),
        ("label", DatasetSpec("u1", (3,)), "/label is of type int8"),
        ("group/value", DatasetSpec("integer", (3,)), "/group/value is of type float64"),
        ("names", DatasetSpec("number", (3,)), "/names is of type object"),
        ("fixed", DatasetSpec("text", (2,)), r"/fixed is of type \|S1"),
        ("complex", DatasetSpec("number", (3,)), "/complex is of type complex128"),
        ("label", DatasetSpec("i1", (3, 1)), r"/label is of shape \(3,\)"),
        ("label", DatasetSpec("i1", ((4, 9),)), r"/label is of shape \(3,\)"),
        ("label", DatasetSpec("i1", (3,), (0, 1)), "/label has values outside 0 to 1"),
        ("group/value", DatasetSpec("f8", (3,), (0, 1)), "/group/value has values outside 0 to 1"),
        ("huge", DatasetSpec("u1", (None,)), "/huge claims 1099511627776 bytes"),
    ],
)
def test_dataset_that_does_not_fit_is_refused(
    path: Path, name: str, spec: DatasetSpec, message: str
):
    with open_hdf5(path) as file, pytest.raises(ValueError, match=message):
        read_datasets(file, {name: spec})


def test_format_of_a_file(path: Path, tmp_path: Path):
    assert hdf5.read_format(path) == "ours"
    assert hdf5.read_format(tmp_path / "other.h5") == ""
    assert hdf5.has_format(path, "ours")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match=r"text\.h5: HDF5 cannot read this file"):
        hdf5.read_format(tmp_path / "text.h5")
    others = (tmp_path / "other.h5", tmp_path / "text.h5", tmp_path, tmp_path / "missing")
    assert not any(hdf5.has_format(other, "ours") for other in others)


def test_attribute_of_an_unknown_type_is_not_read(tmp_path: Path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update({"number": 1, "text": "t", "texts": ["a", "b"]})
        assert read_attributes(file)["texts"].tolist() == ["a", "b"]
    data = path.read_bytes()
    assert data.count(TEXT_TYPE) == 2
    path.write_bytes(data.replace(TEXT_TYPE, b"\x19\xff" + TEXT_TYPE[2:], 1))  # no kind 15 exists
    with h5py.File(path) as file:
        assert set(file.attrs) == {"number", "text", "texts"}
        assert set(read_attributes(file)) == {"number", "texts"}


def zero_heap(path: Path, number: int) -> None:
    data = bytearray(path.read_bytes())
    starts = [found.start() for found in re.finditer(re.escape(SIGNATURE), data)]
    data[starts[number] + 16 : starts[number] + 64] = bytes(48)
    path.write_bytes(data)


@pytest.mark.parametrize("heap", [0, 1, -1])
def test_zeroed_block_in_a_heap_is_found(tmp_path: Path, heap: int):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["texts"] = [f"text {number}" for number in range(9000)]
        file.attrs["one"] = "more"
    _check_heaps(path)
    zero_heap(path, heap)
    with pytest.raises(ValueError, match="texts in the file are damaged"):
        _check_heaps(path)


def test_incomplete_heap_is_left_to_hdf5(tmp_path: Path):
    for start in (b"", *(b"x" + SIGNATURE + end for end in (b"", b"\1\0"))):
        for ending in (b"", struct.pack("<Q", 2**62)):
            (tmp_path / "a").write_bytes(start + ending)
            _check_heaps(tmp_path / "a")


def test_pack_with_a_zeroed_heap_is_a_one_line_error(pack: Pack):
    zero_heap(pack.path, 0)
    with pytest.raises(DataError, match=r"not a usable pack \(texts in the file are damaged\)"):
        Pack(pack.path)
