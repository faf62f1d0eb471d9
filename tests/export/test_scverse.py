"""AnnData and SpatialData of maps. Tests of these packages skip if the package is not installed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import wsi_idc
from tests.small_maps import hand_map, slide_view, small_map, write_two_slides
from wsi_idc.export.scverse import to_dataframe
from wsi_idc.geometry.grid import corners_of
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_file import write_patient_file
from wsi_idc.maps.patient_map import PatientMap

CELLS = np.array([(15, 11), (30, 5), (31, 6), (35, 12)], np.int32)  # cells of 400 px on the slide


def slide_map(**changes: Any) -> PatientMap:
    """Return a map of four gray patches of 50 px at 4 um/px on a slide of 0.5 um/px."""
    shades = np.array([40, 100, 160, 220], np.uint8)
    fields: dict[str, Any] = {
        "source": "slide",
        "patch_px": 50,
        "coords": corners_of(CELLS, stride_px=50, mpp=4.0, slide_mpp=0.5),
        "patches": np.broadcast_to(shades[:, None, None, None], (4, 50, 50, 3)),
        "slide": slide_view(),
    }
    return small_map(CELLS, **fields | changes)


def test_the_share_of_tissue_is_that_of_the_mask():
    # The mask has tissue from x = 1600 to 6400, and from y = 4000 to 12000.
    corners = {
        "inside": (2000, 5000),
        "half": (1400, 5000),
        "outside": (0, 0),
        "edge": (6400, 4000),
    }
    table = to_dataframe(slide_map(coords=np.array(list(corners.values()), np.int32)))
    assert table["tissue"].tolist() == pytest.approx([1, 0.5, 0, 0])


def test_a_missing_package_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_map(tmp_path / "P1.h5", hand_map())
    opened = wsi_idc.open_map(tmp_path / "P1.h5")
    for package, convert in (
        ("anndata", opened.to_anndata),
        ("spatialdata", opened.to_spatialdata),
    ):
        monkeypatch.setitem(sys.modules, package, None)  # as if not installed
        with pytest.raises(wsi_idc.WsiIdcError) as caught:
            convert()
        expected = f"to_{package} needs the package {package}; run pip install 'wsi-idc[{package}]'"
        assert str(caught.value) == expected


@pytest.mark.filterwarnings("default")  # of other packages
def test_anndata_has_table_centers_and_provenance(tmp_path: Path):
    anndata = pytest.importorskip("anndata")
    (first, _) = write_two_slides(tmp_path)
    flags = {"flags": np.array([0, 1, 1, 0, 0], np.uint8), "flag_bits": {"blur": 1}}
    write_map(first, hand_map(slide_name="a", **flags))
    opened = wsi_idc.open_map(tmp_path / "P1.h5")
    made = opened.to_anndata()
    made.write_h5ad(tmp_path / "maps.h5ad")
    data = anndata.read_h5ad(tmp_path / "maps.h5ad")
    assert data.X.tolist() == made.obs["probability"].to_numpy()[:, None].tolist()
    assert list(data.var_names) == ["IDC"]
    assert data.obs_names.tolist()[:2] == ["P1/a_0_1", "P1/a_1_2"]
    assert data.obs["map"].tolist() == ["P1/a"] * 5 + ["P1/b"] * 3
    assert data.obsm["spatial"][:2].tolist() == [[75, 25], [125, 75]]
    settings = data.uns["wsi_idc"]["b"]
    assert (settings["patient"], settings["mpp"], settings["threshold"]) == ("P1", 4.0, 0.5)
    assert json.loads(settings["provenance"])["created"] == "2026-01-02"
    assert data.obs["flag_blur"].tolist() == [False, True, True, False, False, *[pd.NA] * 3]
    table = opened.to_dataframe().drop(columns=["slide", "flag_blur"]).fillna(-1)
    obs = data.obs[list(table)].astype(object)  # anndata stores text as categories
    assert (obs.fillna(-1).to_numpy() == table.to_numpy()).all()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("stride_px", [None, 30])
def test_patches_of_spatialdata_are_on_the_pixels_of_its_images(
    tmp_path: Path, stride_px: int | None
):
    spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed")
    from spatialdata.transformations import get_transformation

    stride = {"stride_px": stride_px} if stride_px else {}
    coords = corners_of(CELLS, stride_px=stride_px or 50, mpp=4.0, slide_mpp=0.5)
    write_map(tmp_path / "P1.h5", slide_map(coords=coords, **stride))
    wsi_idc.open_map(tmp_path / "P1.h5").to_spatialdata().write(tmp_path / "P1.zarr")
    data = spatialdata.read_zarr(tmp_path / "P1.zarr")
    assert sorted(data.images) == ["thumbnail", "tissue"]
    centers = data["table"].obsm["spatial"]
    squares = data["patches"]
    assert data["table"].obs["region"].tolist() == ["patches"] * 4
    assert data["table"].obs["patch"].tolist() == squares.index.tolist()
    np.testing.assert_allclose(np.c_[squares.centroid.x, squares.centroid.y], centers)
    assert squares.area.tolist() == [400**2] * 4

    def pixels(name: str) -> np.ndarray:
        to_image = get_transformation(data[name]).inverse().to_affine_matrix(*[("x", "y")] * 2)
        x, y = np.floor(np.c_[centers, np.ones(4)] @ to_image.T)[:, :2].astype(int).T
        return np.asarray(data[name])[:, y, x]

    assert pixels("tissue").tolist() == [[40, 100, 160, 220]] * 3
    view = slide_view()
    x, y = (centers / 800).astype(int).T  # a px of the thumbnail is 800 px of the slide
    np.testing.assert_array_equal(pixels("thumbnail"), view.thumbnail[y, x].T)


@pytest.mark.filterwarnings("default")
def test_slides_of_a_patient_have_coordinate_systems_of_their_own(tmp_path: Path):
    pytest.importorskip("spatialdata", reason="spatialdata is not installed")
    for name in ("s 1", "S_1"):  # SpatialData accepts no blank and ignores the case
        write_map(tmp_path / f"P1/{name}.h5", slide_map(slide_name=name))
    write_patient_file(tmp_path / "P1.h5")
    data = wsi_idc.open_map(tmp_path / "P1.h5").to_spatialdata()
    assert sorted(data.coordinate_systems) == ["S_1", "s_1_"]
    assert sorted(data.shapes) == ["S_1_patches", "s_1__patches"]
    assert data["table"].obs["region"].value_counts().tolist() == [4, 4]
