import errno
import multiprocessing
import os
import pickle
import shutil
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.packs import PATIENTS, pixels_of
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack, PackInfo, is_pack, write_pack
from wsi_idc.explore.pixel_statistics import pixel_statistics
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

PATCHES = np.zeros((7, 50, 50, 3), np.uint8)
CHANGED = "the pack was changed while open; run the command again"
INFO = PackInfo((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), 50, 4.0, "assumed", "ab" * 32)


def assert_refused(path: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        Pack(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def replace(file: h5py.File, name: str, value, **options) -> None:
    del file[name]
    file.create_dataset(name, data=value, **options)


def text(*values: str) -> np.ndarray:
    return np.array(values, dtype=h5py.string_dtype())


def test_every_pixel_and_row(pack):
    expected = sorted((p, r, c, label) for p, cells in PATIENTS.items() for r, c, label in cells)
    assert len(pack) == len(expected) == 7
    assert pack.patients == ["10253", "10254", "9"]
    assert pack.patient_of.tolist() == [patient for patient, *_ in expected]
    for i, (patient, row, col, label) in enumerate(expected):
        assert np.array_equal(pack.patches[i], pixels_of(patient, row, col))
        columns = ["x", "y", "label", "height", "width"]
        assert pack.index.loc[i, columns].tolist() == [col * 50, row * 50, label, 50, 50]
    assert [pack.rows_of(name).tolist() for name in pack.patients] == [[0, 1, 2], [3, 4], [5, 6]]
    with pytest.raises(DataError, match=r"'8' in .+; it has 3 patients, such as 10253, 10254, 9"):
        pack.rows_of("8")
    assert pack.paths()[1] == "10253/1/10253_idx5_x51_y1_class1.png"


def test_the_layout_is_the_documented_one(pack):
    with h5py.File(pack.path) as file:
        expected = {"patches": "uint8", "patient": "int32", "patients": "object", "path": "object"}
        expected |= {"x": "int32", "y": "int32", "label": "int8"}
        expected |= {"height": "uint8", "width": "uint8"}
        assert {name: str(file[name].dtype) for name in file} == expected
        patches = file["patches"]
        assert patches.shape == (7, 50, 50, 3)
        assert (patches.chunks, patches.compression) == (None, None)
        assert patches.id.get_offset() is not None
        attributes = dict(file.attrs)
        assert (attributes["format"], attributes["format_version"]) == ("wsi-idc-pack", 1)
        assert list(attributes["class_names"]) == ["non-IDC", "IDC"]
        assert attributes["complete"] == 1


def test_pixels_are_mapped_read_only_and_a_pickle_holds_only_the_name(pack):
    assert isinstance(pack.patches, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pack.patches[0] = 0
    data = pickle.dumps(pack)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.index.equals(pack.index)
    assert np.array_equal(copy.patches, pack.patches)
    pack.path.unlink()  # no handle stays open
    assert np.array_equal(pack.patches[0], pixels_of("10253", 0, 0))


def test_a_spawned_worker_reads_the_same(cohort):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pixels = pool.apply(Pack.read, (cohort, np.arange(len(cohort))))
        index = pool.apply(getattr, (cohort, "index"))
    assert np.array_equal(pixels, cohort.patches)
    assert index.equals(cohort.index)


def test_rows_and_pixels_must_be_as_many(tmp_path):
    table = pd.DataFrame({"patient": ["a", "a"], "path": ["1", "2"], "x": [0, 50], "y": 0})
    table = table.assign(label=0, height=50, width=50)
    blocks = [np.zeros((1, 50, 50, 3), np.uint8)]
    with pytest.raises(ValueError, match="1 patches for an index of 2 rows"):
        write_pack(tmp_path / "a.h5", table, blocks, info=INFO, provenance="{}")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_a_pack(pack, tmp_path):
    path = tmp_path / "a.h5"
    assert_refused(path, "no such file; make one with wsi-idc prepare")
    for text in ("patient,label\n", ""):
        path.write_text(text)
        assert_refused(path, "not an HDF5 file; give a pack, a patch tree, or a zip")
        assert not is_pack(path)
    assert_refused(tmp_path, "not an HDF5 file")
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "wsi-idc-map"
    assert_refused(path, r"not a usable pack \(it is HDF5, but not a pack\); make it again")
    assert is_pack(pack.path)
    assert not any(map(is_pack, (path, tmp_path, tmp_path / "absent.h5")))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_cut_short(pack, share):
    data = pack.path.read_bytes()
    pack.path.write_bytes(data[: int(len(data) * share)])
    assert_refused(pack.path, "not a usable pack|not an HDF5 file|too short")


def test_truncated_while_it_is_mapped(pack):
    os.truncate(pack.path, 10_000)
    for read in (lambda: pack.patches[0], lambda: pack.read(np.arange(7))):
        with pytest.raises(DataError, match="the pack was truncated while open"):
            read()


def test_too_little_memory_is_not_a_damaged_pack(pack, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", fail)
    with pytest.raises(MemoryError):
        Pack(pack.path)


def test_a_sparse_pack_of_very_many_patches_is_refused_before_its_index_is_read(tmp_path):
    path, num = tmp_path / "a.h5", 10**8
    with h5py.File(path, "w") as file:
        attributes = vars(INFO) | {"patch_px": 1, "class_names": ["a", "b"], "complete": 1}
        file.attrs.update(attributes | {"format": "wsi-idc-pack", "format_version": 1})
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((num, 1, 1, 3))
        h5py.h5d.create(file.id, b"patches", h5py.h5t.NATIVE_UINT8, space, layout)
    assert path.stat().st_blocks * 512 < 10**6
    assert_refused(path, "100000000 patches are more than 20000000")


DAMAGE = {
    "version": (lambda f: f.attrs.update(format_version=3), "format version 3, not 1 or 2"),
    "incomplete": (lambda f: f.attrs.update(complete=0), "it is not complete"),
    "no attribute": (lambda f: f.attrs.__delitem__("mean"), "mean"),
    "mean": (lambda f: f.attrs.update(mean=[0.5]), "not enough values"),
    "nan": (lambda f: f.attrs.update(std=[0.5, np.nan, 0.5]), "mean and std are not within"),
    "tiny mpp": (lambda f: f.attrs.update(mpp=1e-320), "patches of 50 px at 1e-320 um/px are"),
    "mpp": (lambda f: f.attrs.update(mpp=0.0), "patches of 50 px at 0.0 um/px are"),
    "patch_px": (lambda f: f.attrs.update(patch_px=49), "/patches is of shape"),
    "classes": (lambda f: f.attrs.update(class_names=["a"]), "1 class names, not 2"),
    "absent": (lambda f: f.__delitem__("x"), "/x is not a dataset of this file"),
    "group": (lambda f: (f.__delitem__("x"), f.create_group("x")), "/x is not a dataset"),
    "scalar": (lambda f: replace(f, "patches", np.uint8(1)), "/patches is of shape"),
    "chunks": (lambda f: replace(f, "patches", PATCHES, chunks=True), "/patches is not contiguous"),
    "half": (lambda f: replace(f, "patches", np.float16(PATCHES)), "/patches is of type float16"),
    "fewer rows": (lambda f: replace(f, "label", np.zeros(6, np.int8)), "/label is of shape"),
    "text": (lambda f: replace(f, "x", text(*"abcdefg")), "/x is of type object"),
    "float x": (lambda f: replace(f, "x", np.zeros(7)), "/x is of type float64"),
    "label": (lambda f: f["label"].__setitem__(0, 2), "/label has values outside -1 to 1"),
    "off grid": (lambda f: f["x"].__setitem__(0, 1), "/x and /y are not on a grid"),
    "negative": (lambda f: f["y"].__setitem__(0, -50), "/y has values outside 0 to"),
    "far": (lambda f: f["y"].__setitem__(0, MAX_CELLS_PER_SIDE * 50), "a grid has more than 2000"),
    "twice": (lambda f: f["x"].__setitem__(1, 0), "two patches of a patient have the"),
    "unsorted": (lambda f: f["patient"].__setitem__(0, 2), "/patient must start at 0"),
    "negative code": (lambda f: f["patient"].__setitem__(0, -1), "/patient must start at 0"),
    "more patients": (lambda f: replace(f, "patients", text(*"1234")), "/patients is of shape"),
    "same patient": (lambda f: f["patients"].__setitem__(1, "10253"), "not sorted or not unique"),
    "unsafe": (lambda f: f["patients"].__setitem__(0, "../../x"), "cannot be a patient id"),
    "newline": (lambda f: f["patients"].__setitem__(0, "1\nError: 2"), "cannot be a patient id"),
    "empty id": (lambda f: f["patients"].__setitem__(0, ""), "cannot be a patient id"),
    "numbers": (lambda f: replace(f, "patients", np.arange(3)), "/patients is of type int64"),
    "size 0": (lambda f: f["height"].__setitem__(0, 0), "has values outside 1 to 50"),
    "size 51": (lambda f: f["width"].__setitem__(0, 51), "has values outside 1 to 50"),
    "no patch": (lambda f: replace(f, "patches", PATCHES[:0]), "not contiguous|no room"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged(pack, name):
    damage, message = DAMAGE[name]
    with h5py.File(pack.path, "r+") as file:
        damage(file)
    assert_refused(pack.path, rf"not a usable pack \(.*({message}).*\); make it again")


def test_huge_claims_take_no_memory(pack):
    with h5py.File(pack.path, "r+") as file:
        file["patient"][-1] = 2**31 - 1
        del file["patients"]
        file.create_dataset("patients", (2**31,), h5py.string_dtype(), chunks=(2**20,))
    assert_refused(pack.path, "the values of /patient must start at 0 and increase by 0 or 1")
    with h5py.File(pack.path, "r+") as file:
        for name, dtype in {"patient": "i4", "x": "i4", "y": "i4", "label": "i1"}.items():
            del file[name]
            file.create_dataset(name, (2**40,), dtype, chunks=(2**20,))
    assert_refused(pack.path, r"/patient is of shape \(1099511627776,\)")
    with h5py.File(pack.path, "r+") as file:
        del file["patches"]
        file.create_dataset("patches", (2**40, 50, 50, 3), "u1")
    assert_refused(pack.path, "/patches claims [0-9]+ bytes, but the file has fewer")


# HDF5 cannot store text of variable length in another file.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(["patches", "label", "patients"], ["external link", "soft link", "virtual"]),
        *product(["patches", "label"], ["external storage"]),
    ],
)
def test_data_of_another_file_are_not_read(pack, tmp_path, name, kind):
    secret = tmp_path / "secret.h5"
    shutil.copy(pack.path, secret)
    with h5py.File(pack.path, "r+") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if kind == "external link":
            file[name] = h5py.ExternalLink("../secret.h5", f"/{name}")
        elif kind == "soft link":
            file[name] = h5py.SoftLink("/x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(secret, name, shape)
            file.create_virtual_dataset(name, layout)
        else:
            external = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(name, shape, dtype, external=external)
    assert_refused(pack.path, f"/{name} is not a dataset of this file")


def same_but_another(path: Path) -> None:
    """Replace a pack by another one of the same size and time."""
    other, state = path.with_name("other.h5"), path.stat()
    shutil.copy(path, other)
    with h5py.File(other, "r+") as file:
        file["path"][0] = "elsewhere"
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert other.stat().st_size == state.st_size
    other.replace(path)


def test_a_replaced_pack_is_noticed(pack, monkeypatch):
    same_but_another(pack.path)
    for read in (pack.paths, lambda: pixel_statistics(pack)):
        with pytest.raises(DataError, match=CHANGED):
            read()
    assert Pack(pack.path).paths()[0] == "elsewhere"
    memmap = np.memmap

    def late(*arguments, **options):
        same_but_another(pack.path)
        return memmap(*arguments, **options)

    monkeypatch.setattr(np, "memmap", late)
    with pytest.raises(DataError, match=CHANGED):
        Pack(pack.path)


def test_damaged_source_paths_are_one_line(pack):
    with h5py.File(pack.path, "r+") as file:
        replace(file, "path", np.arange(7))
    with pytest.raises(DataError, match=r"a part cannot be read \(/path is of type int64\)"):
        Pack(pack.path).paths()


def test_any_changed_byte_is_a_pack_or_one_line(pack):
    data = pack.path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, 2000, 150):
        damaged = bytearray(data)
        damaged[at] = rng.integers(256)
        pack.path.write_bytes(damaged)
        try:
            Pack(pack.path).paths()
        except DataError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > 10
