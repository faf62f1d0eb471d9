from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.small_maps import edge_map, hand_map, slide_view
from wsi_idc.maps.map_writer import write_map
from wsi_idc.plotting.raster import color_table
from wsi_idc.view import layers as layers_module
from wsi_idc.view.layers import MapLayers, map_layers


def layers_of_map(folder: Path, **changes) -> MapLayers:
    write_map(folder / "P1.h5", hand_map(**changes))
    return map_layers(folder / "P1.h5")


def decode(png: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA)


def test_values_have_a_column_each(tmp_path: Path):
    patient_map = hand_map(uncertainty=np.full(5, 0.25, np.float32))
    write_map(tmp_path / "P1.h5", patient_map)
    found = map_layers(tmp_path / "P1.h5")
    names = ["row", "col", "x", "y", "labels", "onSlide", "probability", "uncertainty"]
    assert found.record["columns"] == names
    values = dict(zip(names, np.frombuffer(found.values, "<f4").reshape(8, 5), strict=True))
    np.testing.assert_array_equal(values["row"], patient_map.row_col[:, 0])
    np.testing.assert_array_equal(values["x"], patient_map.coords[:, 0])
    np.testing.assert_array_equal(values["labels"], [1, 0, 1, 0, -1])
    np.testing.assert_array_equal(values["probability"], patient_map.probability)
    np.testing.assert_array_equal(values["uncertainty"], [0.25] * 5)


def test_layers_have_colors_whose_opacity_follows_the_value(tmp_path: Path):
    record = layers_of_map(tmp_path).record
    layers = {layer["name"]: layer for layer in record["layers"]}
    assert list(layers) == ["probability", "cam", "labels", "errors", "called"]
    colors = np.array(layers["probability"]["colors"]).reshape(256, 4)
    np.testing.assert_array_equal(colors[:, :3], color_table("viridis")[:, :3])
    np.testing.assert_array_equal(colors[:, 3], np.minimum(2 * np.arange(256), 255))
    assert layers["labels"]["keys"] == [
        ["#8fb7d9", "non-IDC"],
        ["#c2410c", "IDC"],
        ["#dedede", "unknown"],
    ]
    assert (record["rows"], record["cols"], record["threshold"]) == (4, 4, 0.5)
    assert record["role"] == "test"


def test_a_map_without_labels_has_no_errors(tmp_path: Path):
    record = layers_of_map(tmp_path, label=np.full(5, -1, np.int8), cam=None).record
    assert [layer["name"] for layer in record["layers"]] == ["probability", "called"]


def test_cams_are_a_picture_of_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = layers_of_map(tmp_path)
    (layer,) = [one for one in found.record["layers"] if one["name"] == "cam"]
    picture = decode(found.pictures["cam"])
    assert picture.shape == (8, 12, 4)
    assert (picture[0, :3, 3] == 0).all()  # a cell without a patch
    cam = hand_map().cam[1]
    table = np.array(layer["colors"]).reshape(256, 4)
    expected = table[np.rint(np.clip(cam / layer["vmax"], 0, 1) * 255).astype(int)]
    row, col = hand_map().row_col[1]
    cell = picture[row * 2 : row * 2 + 2, col * 3 : col * 3 + 3]
    np.testing.assert_array_equal(cell, expected)
    monkeypatch.setattr(layers_module, "_MAX_PICTURE_SIDE_PX", 8)
    assert decode(layers_of_map(tmp_path).pictures["cam"]).shape == (8, 8, 4)


def test_the_tissue_mask_is_an_outline(tmp_path: Path):
    found = layers_of_map(tmp_path, slide=slide_view(), source="slide")
    assert found.record["layers"][-1]["name"] == "tissue"
    alpha = decode(found.pictures["tissue"])[..., 3]
    assert alpha.shape == (20, 10)
    assert (alpha > 0).sum() == 2 * 6 + 2 * 8  # the edge of 10 x 6 px
    assert alpha[5, 2] == alpha[14, 7] == 255
    assert alpha[10, 4] == alpha[0, 0] == 0


def test_cells_beyond_the_edge_of_the_slide_count_in_part(tmp_path: Path):
    write_map(tmp_path / "P1.h5", edge_map())
    found = map_layers(tmp_path / "P1.h5")
    values = np.frombuffer(found.values, "<f4").reshape(-1, 4)
    on_slide = values[found.record["columns"].index("onSlide")]
    np.testing.assert_array_equal(on_slide, [1, 0.5, 0.25, 0.125])
