import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.small_maps import slide_view, small_map
from wsi_idc.core.errors import DataError, MapError
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.maps.map_reader import (
    is_map,
    map_path,
    open_image,
    read_image,
    read_image_rows,
    read_map,
    read_provenance,
)
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_map import PatientMap


@pytest.fixture
def patient_map() -> PatientMap:
    """Return a map of three patches on a grid of 2 x 3 cells."""
    rng = np.random.default_rng(2)
    cells = [(0, 1), (1, 0), (1, 2)]
    return small_map(
        cells,
        patch_px=50,
        threshold=0.4,
        temperature=1.25,
        model={"architecture": "cnn"},
        provenance={"identity": {"checkpoint": "abc"}},
        coords=np.array(cells, np.int32)[:, ::-1] * 50,
        logit=rng.normal(size=(3, 2)).astype(np.float32),
        probability=np.array([0.1, 0.5, 0.9], np.float32),
        label=np.array([0, -1, 1], np.int8),
        cam=rng.random((3, 6, 5)).astype(np.float32),
        patches=rng.integers(0, 255, (3, 50, 50, 3), dtype=np.uint8),
    )


@pytest.fixture
def path(patient_map: PatientMap, tmp_path: Path) -> Path:
    path = tmp_path / "P1.h5"
    write_map(path, patient_map)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[h5py.File]:
    with h5py.File(path, locking=False) as opened:
        yield opened


def test_root_attributes(file: h5py.File):
    found = dict(file.attrs)
    assert list(found.pop("class_names")) == ["non-IDC", "IDC"]
    assert json.loads(found.pop("model")) == {"architecture": "cnn"}
    assert json.loads(found.pop("provenance")) == {"identity": {"checkpoint": "abc"}}
    assert found == {
        "NX_class": "NXroot",
        "default": "map",
        "format": "wsi-idc-map",
        "format_version": 1,
        "complete": 1,
        "patient": "P1",
        "source": "pack",
        "patch_px": 50,
        "stride_px": 50,
        "mpp": 4.0,
        "mpp_source": "assumed",
        "rows": 2,
        "cols": 3,
        "threshold": 0.4,
        "temperature": 1.25,
    }


def test_columns_have_a_row_per_patch(file: h5py.File, patient_map: PatientMap):
    types = {"coords": "i4", "row_col": "i4", "logit": "f4", "probability": "f4", "label": "i1"}
    for name, dtype in types.items():
        assert file[name].dtype == dtype
        np.testing.assert_array_equal(file[name][:], getattr(patient_map, name))


def test_coords_have_the_attributes_of_clam_trident_and_wsinfer(file: h5py.File):
    attrs = file["coords"].attrs
    assert attrs["name"] == "P1"
    assert attrs["patch_size"] == attrs["patch_size_level0"] == 50
    assert attrs["patch_level"] == attrs["overlap"] == 0
    assert attrs["patch_spacing_um_px"] == 4.0
    assert attrs["level0_magnification"] == attrs["target_magnification"] == 2.5
    assert attrs["level_dim"].tolist() == [150, 100]  # width, height
    assert attrs["downsample"].tolist() == [1.0, 1.0]


def test_map_group_is_nxdata_with_nan_in_cells_without_patch(file: h5py.File):
    group = file["map"]
    assert (group.attrs["NX_class"], group.attrs["signal"]) == ("NXdata", "probability")
    assert list(group.attrs["axes"]) == ["y", "x"]
    nan = np.float32(np.nan)
    np.testing.assert_array_equal(
        group["probability"][:], np.array([[nan, 0.1, nan], [0.5, nan, 0.9]], np.float32)
    )
    assert group["label"][:].tolist() == [[-1, 0, -1], [-1, -1, 1]]
    assert group["index"][:].tolist() == [[-1, 0, -1], [1, -1, 2]]
    assert (group["label"].dtype, group["index"].dtype) == (np.int8, np.int32)
    assert group["x"][:].tolist() == [100.0, 300.0, 500.0]
    assert group["y"][:].tolist() == [100.0, 300.0]
    assert group["x"].attrs["units"] == "um"


def test_cam_mosaic_is_the_raw_cams_on_the_grid(file: h5py.File, patient_map: PatientMap):
    group = file["cam"]
    names = ("NX_class", "method", "target_layer", "class", "normalized")
    values = [group.attrs[name] for name in names]
    assert values == ["NXdata", "gradcam", "features", "IDC", 0]
    np.testing.assert_array_equal(group["raw"][:], patient_map.cam)
    mosaic = group["mosaic"][:]
    assert mosaic.shape == (12, 15)
    np.testing.assert_array_equal(mosaic[6:, 10:], patient_map.cam[2])
    np.testing.assert_array_equal(mosaic[:6, 5:10], patient_map.cam[0])
    assert np.isnan(mosaic[:6, :5]).all()
    assert group["y"].shape == (12,)
    assert group["x"][:3] == pytest.approx([20.0, 60.0, 100.0])


def test_image_is_the_patches_on_white(path: Path, file: h5py.File, patient_map: PatientMap):
    rgb = file["image/rgb"][:]
    assert rgb.shape == (100, 150, 3)
    np.testing.assert_array_equal(rgb[:50, 50:100], patient_map.patches[0])
    np.testing.assert_array_equal(rgb[50:, :50], patient_map.patches[1])
    np.testing.assert_array_equal(rgb[50:, 100:], patient_map.patches[2])
    assert (rgb[:50, :50] == 255).all()
    assert (rgb[50:, 50:100] == 255).all()
    np.testing.assert_array_equal(read_image(path), rgb)
    np.testing.assert_array_equal(list(read_image_rows(path)), [rgb[:50], rgb[50:]])


def test_image_is_read_by_rows(path: Path, patient_map: PatientMap):
    with open_image(path) as read_rows:
        assert read_rows is not None
        rows = read_rows(60, 80)
    assert rows.shape == (20, 150, 3)
    np.testing.assert_array_equal(rows[:, 100:], patient_map.patches[2][10:30])
    with pytest.raises(OSError, match="mine"), open_image(path):
        raise OSError("mine")
    with pytest.raises(MapError, match="no such file"), open_image(path.with_name("none.h5")):
        pass


def test_image_and_cam_can_be_left_out(patient_map: PatientMap, tmp_path: Path):
    path = tmp_path / "P1.h5"
    write_map(path, replace(patient_map, patches=None, cam=None, cam_layer=""))
    with h5py.File(path) as file:
        assert "image" not in file
    assert read_image(path) is None
    assert list(read_image_rows(path)) == []
    found = read_map(path)
    assert found.cam is None
    assert found.uncertainty is found.unsmoothed is found.smoothing is found.slide is None
    with pytest.raises(ValueError, match="without a CAM"):
        found.cam_mosaic()


def test_written_values_are_read(path: Path, patient_map: PatientMap):
    found = read_map(path)
    for name in ("coords", "row_col", "logit", "probability", "label", "cam"):
        np.testing.assert_array_equal(getattr(found, name), getattr(patient_map, name))
    assert found.shape == (2, 3)
    assert found.patches is None
    assert read_provenance(path)["identity"] == {"checkpoint": "abc"}
    assert is_map(path)
    assert read_provenance(path.with_name("none.h5")) is None
    with pytest.raises(MapError, match="no such file"):
        read_map(path.with_name("none.h5"))


def test_equal_maps_are_equal_bytes(patient_map: PatientMap, tmp_path: Path):
    for name in ("a.h5", "b.h5"):
        write_map(tmp_path / name, patient_map)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_provenance_is_read_without_the_cams(path: Path, monkeypatch: pytest.MonkeyPatch):
    read, names = h5py.Dataset.__getitem__, []

    def noting(dataset: h5py.Dataset, *where: object) -> object:
        names.append(dataset.name)
        return read(dataset, *where)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", noting)
    assert read_provenance(path)["identity"] == {"checkpoint": "abc"}
    assert read_image(path) is not None
    assert "/probability" in names
    assert "/cam/raw" not in names
    with h5py.File(path, "r+") as file:
        del file["cam/raw"]
    with pytest.raises(MapError, match="not a usable map"):
        read_provenance(path)


def _replace(name: str, **dataset: object) -> Callable[[h5py.File], None]:
    """Return a change that replaces a dataset; without arguments by a group."""

    def change(file: h5py.File) -> None:
        del file[name]
        if dataset:
            file.create_dataset(name, **dataset)
        else:
            file.create_group(name)

    return change


def _set(**attrs: object) -> Callable[[h5py.File], None]:
    """Return a change of attributes of the file."""
    return lambda file: file.attrs.update(attrs)


def _set_slide(
    tissue: tuple[int, ...] = (8, 12),
    thumbnail: tuple[int, ...] = (8, 12, 3),
    chunks: bool | None = None,
    **attrs: object,
) -> Callable[[h5py.File], None]:
    """Return a change that adds a slide to the map."""

    def change(file: h5py.File) -> None:
        group = file.create_group("slide")
        group.attrs.update({"name": "a.svs", "mpp": 0.5, "width": 1200, "height": 800} | attrs)
        group.create_dataset("tissue", tissue, "u1", chunks=chunks)
        group.create_dataset("thumbnail", thumbnail, "u1", chunks=chunks)

    return change


def _elsewhere(name: str, kind: str) -> Callable[[h5py.File], None]:
    """Return a change that moves a dataset out of the file, or behind a link."""

    def change(file: h5py.File) -> None:
        folder, dataset = Path(file.filename).parent, file[name]
        shape, dtype, values = dataset.shape, dataset.dtype, dataset[()]
        del file[name]
        if kind == "external storage":
            (folder / "raw").write_bytes(values.tobytes())
            file.create_dataset(name, shape, dtype, external=[(folder / "raw", 0, values.nbytes)])
        elif kind == "virtual":
            with h5py.File(folder / "other", "w") as other:
                other["x"] = values
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(folder / "other", "x", shape)
            file.create_virtual_dataset(name, layout)
        elif kind == "soft link":
            file["x"] = values
            file[name] = h5py.SoftLink("/x")
        else:
            os.mkfifo(folder / "fifo")
            file[name] = h5py.ExternalLink(folder / "fifo", "/x")

    return change


@pytest.mark.parametrize("kind", ["external storage", "virtual", "soft link", "external link"])
@pytest.mark.parametrize("name", ["image/rgb", "label", "cam/raw"])
def test_datasets_of_other_files_are_refused(path: Path, name: str, kind: str):
    with h5py.File(path, "r+") as file:
        _elsewhere(name, kind)(file)
    with pytest.raises(MapError, match=f"/{name} is not a dataset of this file"):
        read_image(path) if name == "image/rgb" else read_map(path)


@pytest.mark.parametrize("name", ["image", "cam", "slide"])
def test_groups_behind_a_link_to_a_pipe_are_refused(path: Path, name: str):
    os.mkfifo(path.with_name("fifo"))
    with h5py.File(path, "r+") as file:
        file.pop(name, None)
        file[name] = h5py.ExternalLink(path.with_name("fifo"), "/")
    with pytest.raises(MapError, match=f"/{name}/.* is not a dataset of this file"):
        read_image(path) if name == "image" else read_map(path)


def test_an_image_that_claims_more_than_it_stores_is_refused(tmp_path: Path):
    path = tmp_path / "P1.h5"
    write_map(path, small_map([(0, 0), (200, 200)], patch_px=4096, patches=None))
    with h5py.File(path, "r+") as file:
        side = 201 * 4096
        file.create_dataset("image/rgb", (side, side, 3), "u1", chunks=(1, 4096, 3))
    with pytest.raises(MapError, match=r"/image/rgb claims \d+ bytes, but the file has fewer"):
        list(read_image_rows(path))


def test_white_parts_of_an_image_need_no_place(tmp_path: Path):
    path = tmp_path / "P1.h5"
    patches = np.zeros((1, 10, 10, 3), np.uint8)
    write_map(path, small_map([(1500, 1900)], patches=patches))
    assert sum(int((strip == 0).sum()) for strip in read_image_rows(path)) == 300


def _add_flags(bits: list[int], meanings: str, value: int = 1) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["flags"] = np.full(3, value, np.uint8)
        file["flags"].attrs.update({"flag_masks": bits, "flag_meanings": meanings})

    return change


NO_SMOOTHING = '{"sigma_um": 1, "temperature": 1, "threshold": 1e13}'
CAM_CLAIM = {"shape": (3, 256, 256), "dtype": "f4", "chunks": (1, 64, 64)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(format="wsi-idc-pack"), "it is an HDF5 file, but not a map"),
        (_set(format_version=2), "format version 2 instead of 1"),
        (_set(complete=0), "it is not complete"),
        (_set(rows=99), "the attributes rows and cols do not fit /row_col"),
        (_set(rows=np.inf), "infinity"),
        (_set(mpp=np.nan), "mpp or patch_px is out of range"),
        (_set(mpp=1e300), "mpp or patch_px"),
        (_set(mpp=1e-320), "mpp or patch_px"),
        (_set(patch_px=np.inf), "mpp or patch_px"),
        (_set(patch_px=0), "mpp or patch_px"),
        (_set(stride_px=51), "a stride of 51 px is impossible for patches of 50 px"),
        (_set(threshold=np.nan), "threshold or temperature is out of range"),
        (_set(temperature=np.nan), "threshold or temperature"),
        (_set(temperature=1e-320), "threshold or temperature"),
        (_set(class_names=["a", "b", "c"]), "3 class names"),
        (_set(patient="../x"), "cannot be a patient id"),
        (_set(model="{"), "Expecting property name"),
        (_set(model="[]"), "model or provenance is not a JSON object"),
        (_set(model='{"auc": NaN}'), "NaN"),
        (_set(provenance="[" * 100_000), "not a usable map"),
        (_set(smoothing=NO_SMOOTHING), "threshold of the smoothed probabilities is out of range"),
        (_set(smoothing="[1]"), "not a usable map"),
        (_set(smoothing='{"a": 1}'), "threshold"),
        (_add_flags([], "", value=0), "the names or bits of the flags are damaged"),
        (_add_flags([1, 1], "a a"), "the names or bits"),
        (_add_flags([1, 2], "a a b"), "the names or bits"),
        (_add_flags([3], "a"), "the names or bits"),
        (_add_flags([1], "<b>"), "the names or bits"),
        (_add_flags([1, 2], "a b", value=5), "a flag has no name"),
        (lambda file: file.__delitem__("label"), "/label is not a dataset"),
        (lambda file: file["label"].__setitem__(0, 7), "/label has values outside -1 to 1"),
        (lambda file: file["row_col"].__setitem__((0, 0), 10**6), "larger than any slide"),
        (lambda file: file["row_col"].__setitem__((0, 0), -1), "no negative"),
        (_replace("coords"), "/coords is not a dataset"),
        (_replace("coords", data=7), "/coords is of "),
        (_replace("coords", data=np.zeros((0, 2), "i4")), "/coords is of shape"),
        (_replace("coords", shape=(2**23, 2), dtype="i4"), "/coords is of shape"),
        (_replace("logit", data=np.zeros((3, 2), "S9")), "/logit is of type"),
        (_replace("cam/raw", data=np.zeros((3, 6, 5), "S9")), "/cam/raw is of type"),
        (_replace("cam/raw", data=np.zeros((2, 6, 5), "f4")), "/cam/raw is of shape"),
        (_replace("cam/raw", **CAM_CLAIM), "/cam/raw claims"),
        (_set_slide(width=0), "the slide's mpp, width or height is out of range"),
        (_set_slide(height=-1), "the slide's mpp"),
        (_set_slide(mpp=np.nan), "the slide's mpp"),
        (_set_slide(bounds=[1, 2, 0, 4]), "the bounds of the slide have no area"),
        (_set_slide(bounds=[1, 2, 3]), "missing 1 required positional argument"),
        (_set_slide(thumbnail=(4, 5, 3)), "/slide/thumbnail is of shape"),
        (_set_slide(tissue=(0, 12), thumbnail=(0, 12, 3)), "/slide/tissue is of shape"),
        (_set_slide((8192, 8192), (8192, 8192, 3), chunks=True), "/slide/tissue claims"),
    ],
)
def test_damaged_and_forged_maps_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[h5py.File], None], reason: str
):
    monkeypatch.setattr("wsi_idc.core.hdf5._SMALL_BYTES", 2**16)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises((MapError, DataError)) as caught:
        read_map(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.999])
def test_truncated_maps_are_refused(path: Path, fraction: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(MapError, match="not a usable map") as caught:
        read_map(path)
    assert "\n" not in str(caught.value)


def test_failed_write_keeps_the_old_map(path: Path, patient_map: PatientMap):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="larger than any slide"):
        write_map(path, replace(patient_map, row_col=patient_map.row_col + 10**6))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["P1.h5"]


@pytest.mark.parametrize("patient", ["../../x", "/b", "", ".", ".hidden", "a\nb", "x" * 200])
def test_patient_id_cannot_leave_the_folder(tmp_path: Path, patient: str):
    with pytest.raises(DataError, match="cannot be a patient id"):
        map_path(tmp_path, patient)
    with pytest.raises(DataError, match=r"cannot be a (patient id|slide name)"):
        map_path(tmp_path, f"a/{patient}")
    assert map_path(tmp_path, "<img src=x>").parent == tmp_path  # odd but harmless
    assert map_path(tmp_path, "P/s") == tmp_path / "P" / "s.h5"


def test_optional_values_are_read(patient_map: PatientMap, tmp_path: Path):
    slide = replace(slide_view(), mpp=0.5, width=1200, height=800)
    optional = replace(
        patient_map,
        source="slide",
        coords=patient_map.row_col[:, ::-1] * 400,
        uncertainty=np.array([0.0, 0.1, 0.2], np.float32),
        unsmoothed=np.array([0.2, 0.4, 0.8], np.float32),
        unsmoothed_threshold=0.35,
        smoothing={"sigma_um": 150.0, "temperature": 0.7, "threshold": 0.45},
        slide=slide,
    )
    write_map(tmp_path / "P1.h5", optional)
    found = read_map(tmp_path / "P1.h5")
    assert found.smoothing == optional.smoothing
    np.testing.assert_array_equal(found.uncertainty, optional.uncertainty)
    np.testing.assert_array_equal(found.unsmoothed, optional.unsmoothed)
    assert (found.threshold, found.unsmoothed_threshold) == (optional.threshold, 0.35)
    np.testing.assert_array_equal(found.slide.thumbnail, slide.thumbnail)
    np.testing.assert_array_equal(found.slide.tissue, slide.tissue)
    assert (found.slide.name, found.slide.mpp) == ("s.svs", 0.5)
    assert found.slide.bounds == Bounds(1000, 3000, 6000, 10000)
    assert found.level0_size == (1200, 800)
    with h5py.File(tmp_path / "P1.h5") as file:
        assert file["coords"].attrs["patch_size_level0"] == 400
        assert file["coords"].attrs["level0_magnification"] == 20
        assert file["coords"].attrs["target_magnification"] == 2.5
        assert file["map/uncertainty"][1].tolist()[::2] == pytest.approx([0.1, 0.2])
        assert file["map/probability_unsmoothed"][0, 1] == np.float32(0.2)
        assert np.isnan(file["map/probability_unsmoothed"][0, 0])


def test_the_smoothed_probability_of_an_older_map_is_its_second_probability(
    patient_map: PatientMap, tmp_path: Path
):
    smoothing = {"sigma_um": 150.0, "temperature": 0.7, "threshold": 0.45}
    write_map(tmp_path / "P1.h5", replace(patient_map, smoothing=smoothing))
    with h5py.File(tmp_path / "P1.h5", "r+") as file:
        file["probability_smoothed"] = np.array([0.2, 0.4, 0.8], np.float32)
    found = read_map(tmp_path / "P1.h5")
    np.testing.assert_array_equal(found.probability, patient_map.probability)
    second = found.second_probability
    np.testing.assert_array_equal(second.values, np.array([0.2, 0.4, 0.8], np.float32))
    assert (second.name, second.threshold) == ("smoothed", 0.45)
    assert second.idc_fraction() == pytest.approx(1 / 3)


def test_unsmoothed_probabilities_need_a_threshold(patient_map: PatientMap, tmp_path: Path):
    changed = replace(patient_map, unsmoothed=patient_map.probability, unsmoothed_threshold=0.5)
    for wrong in (None, 1.5, np.nan):
        write_map(tmp_path / "P1.h5", changed)
        with h5py.File(tmp_path / "P1.h5", "r+") as file:
            del file.attrs["unsmoothed_threshold"]
            if wrong is not None:
                file.attrs["unsmoothed_threshold"] = wrong
        with pytest.raises(MapError, match="threshold of the unsmoothed probabilities"):
            read_map(tmp_path / "P1.h5")
