import struct
from pathlib import Path

import h5py
import pytest

from wsi_idc.core.errors import DataError
from wsi_idc.core.hdf5 import check_heaps, read_attributes
from wsi_idc.data.pack import Pack

SIGNATURE = b"GCOL\x01\0\0\0"


def written(path: Path) -> bytearray:
    with h5py.File(path, "w") as file:
        file["texts"] = [f"text {number}" for number in range(9000)]
        file.attrs["one"] = "more"
    return bytearray(path.read_bytes())


def test_whole_heaps_pass(tmp_path: Path):
    assert written(tmp_path / "a.h5").count(SIGNATURE) > 1
    check_heaps(tmp_path / "a.h5")
    (tmp_path / "empty").write_bytes(b"")
    check_heaps(tmp_path / "empty")


@pytest.mark.parametrize("place", [0, -1])
def test_a_zeroed_block_in_a_heap_is_found(tmp_path: Path, place: int):
    data = written(tmp_path / "a.h5")
    heaps = [at for at in range(len(data)) if data.startswith(SIGNATURE, at)]
    start = heaps[place]
    data[start + 16 : start + 64] = bytes(48)
    (tmp_path / "a.h5").write_bytes(data)
    with pytest.raises(ValueError, match="its texts are damaged"):
        check_heaps(tmp_path / "a.h5")


@pytest.mark.parametrize("ending", [b"", b"\1\0", struct.pack("<Q", 2**62)])
def test_what_only_begins_like_a_heap_is_left_to_hdf5(tmp_path: Path, ending: bytes):
    path = tmp_path / "a"
    path.write_bytes(b"x" + SIGNATURE + ending)
    check_heaps(path)


def test_a_pack_whose_heap_is_zeroed_is_one_line(pack: Pack):
    data = bytearray(pack.path.read_bytes())
    start = data.index(SIGNATURE)
    data[start + 16 : start + 64] = bytes(48)
    pack.path.write_bytes(data)
    with pytest.raises(DataError, match=r"not a usable pack \(its texts are damaged\)"):
        Pack(pack.path)


def test_an_attribute_of_a_type_that_nobody_writes_is_not_read(tmp_path: Path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update({"number": 1, "text": "t", "texts": ["a", "b"]})
        assert read_attributes(file)["texts"].tolist() == ["a", "b"]
    data = path.read_bytes()
    # Class 9 (of any length), kind 1 (a string); there is no kind 15.
    assert data.count(b"\x19\x01\x01\x00\x10\0\0\0") == 2
    path.write_bytes(data.replace(b"\x19\x01\x01\x00\x10\0\0\0", b"\x19\xff\x01\x00\x10\0\0\0", 1))
    with h5py.File(path) as file:
        assert set(file.attrs) == {"number", "text", "texts"}
        assert set(read_attributes(file)) == {"number", "texts"}
