import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.export.maps import full_grid, on_slide, small_map, write_all
from wsi_idc.export import png as png_module
from wsi_idc.export.layers import layer_pictures
from wsi_idc.export.png import write_png
from wsi_idc.maps.layers import robust_max
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS
from wsi_idc.render import panels
from wsi_idc.report.layers import cam_levels, page_layers


def draw(patient_map: PatientMap, folder: Path) -> dict[str, np.ndarray]:
    """Write each layer as PNG and return the pictures, shape (h, w, 4)."""
    files = write_all(patient_map, folder, write_png, "png")
    pictures = {name: Image.open(path) for name, path in files.items()}
    assert {picture.mode for picture in pictures.values()} == {"RGBA"}
    return {name: np.asarray(picture) for name, picture in pictures.items()}


def all_of(cells: np.ndarray, **changes: object) -> PatientMap:
    """Return a map with everything that a map can have."""
    num, side = len(cells), int(changes.get("patch_px", 50))
    rng = np.random.default_rng(1)
    defaults = {
        "label": rng.integers(-1, 2, num).astype(np.int8),
        "cam": rng.random((num, 3, 2)).astype(np.float32),
        "uncertainty": (rng.random(num) / 2).astype(np.float32),
        "unsmoothed": rng.random(num).astype(np.float32),
        "unsmoothed_threshold": 0.5,
        "patches": rng.integers(0, 200, (num, side, side, 3), dtype=np.uint8),
    }
    return small_map(cells, rng.random(num), **defaults | changes)


def test_layers_have_one_size_and_one_alpha(tmp_path: Path):
    patient_map = all_of(np.array([[0, 1], [1, 0], [2, 3]]))
    pictures = draw(patient_map, tmp_path)
    assert list(pictures) == ["tissue", "probability", "unsmoothed", "cam", "labels", "uncertainty"]
    present = ~np.isnan(patient_map.probability_grid()).repeat(50, axis=0).repeat(50, axis=1)
    for picture in pictures.values():
        assert picture.shape == (150, 200, 4)
        np.testing.assert_array_equal(picture[..., 3], np.where(present, 255, 0))
    np.testing.assert_array_equal(pictures["tissue"][50:100, :50, :3], patient_map.patches[1])


@pytest.mark.parametrize("max_px", [10**9, 300 * 300 * 5 * 5])
def test_last_row_and_column_do_not_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_px: int
):
    monkeypatch.setattr(png_module, "MAX_PX", max_px)
    side = 8 if max_px == 10**9 else 5
    # Black tissue, probability 1, label 1 and a CAM at the last cell and along the edges alone.
    cells = full_grid(300, 300)
    edge = (cells[:, 0] == 299) | (cells[:, 1] == 299)
    patient_map = small_map(
        cells,
        edge,
        patch_px=8,
        label=edge.astype(np.int8),
        cam=np.where(edge, 1, 0).astype(np.float32)[:, None, None].repeat(3, 1).repeat(3, 2),
        uncertainty=np.where(edge, 0.5, 0).astype(np.float32),
        patches=np.where(edge, 0, 200).astype(np.uint8)[:, None, None, None]
        * np.ones((1, 8, 8, 3), np.uint8),
    )
    pictures = draw(patient_map, tmp_path)
    assert len(pictures) == 5
    for name, picture in pictures.items():
        assert picture.shape == (300 * side, 300 * side, 4)
        inner, last = picture[0, 0].tolist(), picture[-1, -1].tolist()
        assert inner != last
        start = 299 * side
        assert (picture[:start, :start] == inner).all(), name
        assert (picture[start:] == last).all(), name
        assert (picture[:, start:] == last).all(), name


def test_probability_has_an_absolute_scale_and_nan_is_transparent(tmp_path: Path):
    low, high = small_map([[0, 0], [0, 1]], [0.0, 0.1]), small_map([[0, 0], [0, 1]], [0.1, 1.0])
    maps = {"a": low, "b": high}
    pictures = [draw(one, tmp_path / name)["probability"] for name, one in maps.items()]
    assert pictures[0][0, 0].tolist() == [68, 1, 84, 255]
    assert pictures[0][0, 50].tolist() == pictures[1][0, 0].tolist()  # 0.1 in both
    assert pictures[1][0, 50].tolist() == [253, 231, 36, 255]
    cam = np.full((2, 2, 2), np.nan, np.float32)
    nan = draw(small_map([[0, 0], [0, 1]], [np.nan, np.inf], cam=cam), tmp_path)
    assert nan["probability"][0, 0, 3] == 0
    assert nan["probability"][0, 50].tolist() == [253, 231, 36, 255]
    assert (nan["cam"][..., 3] == 0).all()


def test_cam_has_one_scale_for_the_patient(tmp_path: Path):
    cam = np.zeros((2, 4, 4), np.float32)
    cam[0], cam[1] = np.linspace(0, 0.1, 16).reshape(4, 4), np.linspace(0, 1, 16).reshape(4, 4)
    patient_map = small_map([[0, 0], [0, 1]], [0.1, 0.9], cam=cam)
    picture = draw(patient_map, tmp_path)["cam"].astype(int)
    assert (np.abs(picture[49, 99] - [252, 254, 164, 255]) <= 1).all()
    # The faint patch stays dark: scaled by itself, it would glow as well.
    assert picture[:, :50, :3].max() < 130


def test_legend_has_position_and_color_scales(tmp_path: Path):
    cells = full_grid(2, 3)
    draw(on_slide(all_of(cells), 0.25), tmp_path)
    legend = json.loads((tmp_path / "layers.json").read_text())
    assert (legend["width_px"], legend["height_px"], legend["px_per_patch"]) == (150, 100, 50)
    assert (legend["um_per_px"], legend["mpp_source"]) == (4.0, "assumed")
    assert legend["level0"] == {"x0": 0.0, "y0": 0.0, "level0_px_per_px": 16.0, "mpp": 0.25}
    layers = {layer["name"]: layer for layer in legend["layers"]}
    assert layers["probability"] == {
        "name": "probability",
        "file": "probability.png",
        "title": "Probability of IDC",
        "kind": "colour map",
        "colour_map": "matplotlib viridis",
        "low": 0.0,
        "high": 1.0,
    }
    assert layers["uncertainty"]["high"] == 0.5
    assert 0.9 < layers["cam"]["high"] < 1
    assert [entry["label"] for entry in layers["labels"]["classes"]] == [0, 1, -1]


@pytest.mark.parametrize("stride_px", [None, 20])
def test_color_scales_agree_between_pictures_pages_and_exports(stride_px: int | None):
    # Where patches overlap, a cell shows the middle of its patch; the largest values are outside.
    cam = np.ones((6, 10, 10), np.float32)
    cam[:, 0], cam[:, 5, 5] = 9, 2
    ones = np.ones(6, np.float32)
    patient_map = all_of(
        full_grid(2, 3), cam=cam, stride_px=stride_px, unsmoothed=ones, uncertainty=ones
    )
    patient_map = replace(patient_map, probability=ones)
    top = robust_max(patient_map.cell_cams())
    assert (top < 9) is (stride_px is not None)
    tissue = np.zeros((2, 3, 3), np.uint8)
    panel_input = panels.PanelInput(patient_map, tissue, has_image=False, cell_px=1, threshold=0.5)
    layers = {layer.name: layer for layer in layer_pictures(patient_map, None)}
    shown = {layer.name: layer for layer in page_layers(patient_map, has_tissue=False)}
    for name in ("probability", "unsmoothed", "uncertainty", "cam"):
        legend = panels.layer_panel(panel_input, name).color_bar
        hex_codes = tuple("#{:02x}{:02x}{:02x}".format(*color) for color in legend.colors)
        assert hex_codes == tuple(color[:7] for color in shown[name].palette)  # without opacity
        assert layers[name].scale["colour_map"] == f"matplotlib {COLORMAPS[name]}"
        assert legend.vmax == shown[name].vmax == (top if name == "cam" else 1)
    assert layers["cam"].scale["high"] == top
    assert cam_levels(patient_map).max() == 255
