from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps

from tests.small_maps import CELLS, SHADES, slide_view, small_map
from wsi_idc.geometry.regions import region_boundary
from wsi_idc.render import panels
from wsi_idc.render.panels import PanelInput

WHITE = [255, 255, 255]


def input_of(*, threshold: float = 0.5, **changes: Any) -> PanelInput:
    """Return the input of the panels of the small map, at 2 px a cell."""
    patient_map = small_map(**changes)
    tissue = np.full((2, 3, 3), 255, np.uint8)
    tissue[tuple(patient_map.row_col.T)] = np.array(SHADES)[:, None]
    tissue = tissue.repeat(2, axis=0).repeat(2, axis=1)
    return PanelInput(patient_map, tissue, has_image=True, cell_px=2, threshold=threshold)


def color_of(name: str, value: float) -> np.ndarray:
    return np.rint(np.array(colormaps[name](value)[:3]) * 255).astype(int)


@pytest.mark.parametrize(
    ("span", "length"), [(3.0, 1.0), (15.2, 5.0), (5.9, 1.0), (6.0, 2.0), (0.5, 0.1), (100, 20)]
)
def test_scale_bar_length_is_a_round_number(span: float, length: float):
    assert panels.nice_length(span) == pytest.approx(length)


def test_tissue_panel_names_a_missing_image():
    panel = panels.tissue_panel(input_of())
    assert panel.title == "Tissue"
    assert (panel.picture[2:4, 4:6] == 220).all()
    assert (panel.size, panel.unit_mm, panel.has_scale) == ((3, 2), pytest.approx(0.04), True)
    panel = panels.tissue_panel(replace(input_of(), has_image=False))
    assert panel.title == "Patches (the map has no image)"


def test_probability_panel_has_an_absolute_scale_and_nan_is_white():
    panel = panels.layer_panel(input_of(), "probability")
    for cell, value in zip(CELLS, (0, 0.25, 0.5, 1.0), strict=True):
        assert (panel.picture[cell] == color_of("viridis", value)).all()
    assert panel.picture[0, 0].tolist() == panel.picture[0, 2].tolist() == WHITE
    bar = panel.color_bar
    assert (bar.vmax, bar.threshold, bar.is_open) == (1.0, 0.5, False)
    nothing = np.full(4, np.nan, np.float32)
    panel_input = input_of(probability=nothing, cam=np.full((4, 2, 2), np.nan, np.float32))
    assert (panels.layer_panel(panel_input, "probability").picture == 255).all()
    assert (panels.layer_panel(panel_input, "cam").picture == 255).all()
    assert panels.outlines_panel(panel_input).legend[-1].ends.size == 0


def test_overlay_is_half_color_half_gray_tissue():
    panel_input = input_of(threshold=0.3)
    panel_input.tissue[2:4, 4:6] = [200, 50, 150]  # of luminance 106
    panel = panels.overlay_panel(panel_input, "probability")
    expected = (106 * 127 + color_of("viridis", 1.0) * 128 + 127) // 255
    assert (panel.picture[2:4, 4:6] == expected).all()
    assert (panel.picture[:2, :2] == 255).all()
    assert panel.color_bar.threshold == 0.3
    # The bar shows the colors over the mean of the four patches.
    mean = round((40 + 100 + 160 + 106) / 4)
    assert panel.color_bar.colors.shape == (256, 3)
    blend = (mean * 127 + color_of("viridis", 1.0) * 128) / 255
    assert abs(panel.color_bar.colors[255] - blend).max() < 2


def test_cam_panel_has_one_scale_for_the_patient():
    cam = np.multiply.outer(np.array([0, 1, 1, 2], np.float32), [[0, 1], [2, 4]]).astype(np.float32)
    panel_input = input_of(cam=cam)
    top = float(np.percentile(cam, 99.5))
    panel = panels.layer_panel(panel_input, "cam")
    assert panel.title == "Grad-CAM of IDC"
    assert (panel.color_bar.vmax, panel.color_bar.is_open) == (pytest.approx(top), True)
    assert panel.picture.shape == (4, 6, 3)  # two values of a CAM along each side of a cell
    table = colormaps["inferno"]
    for (row, col), block in zip(CELLS, cam, strict=True):
        for y, x in np.ndindex(2, 2):
            expected = np.rint(np.array(table(int(min(block[y, x] / top * 256, 255)))[:3]) * 255)
            assert (panel.picture[2 * row + y, 2 * col + x] == expected).all()
    assert (panel.picture[:2, :2] == 255).all()


def test_zero_cam_keeps_the_tissue():
    panel_input = input_of(cam=np.zeros((4, 2, 2), np.float32))
    panel = panels.overlay_panel(panel_input, "cam")
    assert (panel.picture == panel_input.tissue).all()  # it was grey before
    assert panel.color_bar.vmax == 1.0


def test_cam_finer_than_the_page_is_averaged():
    cam = np.zeros((4, 8, 8), np.float32)
    cam[3, :4] = 2
    panel_input = input_of(cam=cam)
    panel = panels.layer_panel(panel_input, "cam")
    assert panel.picture.shape == (4, 6, 3)
    assert (panel.picture[2, 4:] == color_of("inferno", 1.0)).all()
    assert (panel.picture[3, 4:] == color_of("inferno", 0.0)).all()


def test_unknown_cam_method_is_named_and_cut_short():
    assert panels.layer_panel(input_of(cam_method="layercam"), "cam").title == "layercam of IDC"
    assert len(panels.layer_panel(input_of(cam_method="x\n" * 99), "cam").title) < 30


def test_labels_panel_counts_labels():
    panel = panels.labels_panel(input_of(label=np.array([0, -1, 1, 1], np.int8)))
    assert [entry.name for entry in panel.legend] == ["IDC (2)", "non-IDC (1)", "unknown (1)"]
    shown = {tuple(panel.picture[cell]) for cell in CELLS}
    assert shown == {(0x8F, 0xB7, 0xD9), (0xC2, 0x41, 0x0C), (0xDE, 0xDE, 0xDE)}
    assert panel.picture[0, 0].tolist() == WHITE


def test_outlines_follow_the_cells():
    panel_input = input_of(threshold=0.25, label=np.array([1, 0, 0, 1], np.int8))
    panel = panels.outlines_panel(panel_input)
    labelled, called = panel.legend
    called_cells = np.array([[False, False, False], [True, True, True]])
    assert (called.ends == region_boundary(called_cells)).all()
    mask = np.array([[False, True, False], [False, False, True]])
    assert (labelled.ends == region_boundary(mask)).all()
    assert [entry.name for entry in panel.legend] == [
        "labelled IDC",
        "called IDC, shaded (\N{GREATER-THAN OR EQUAL TO} 0.25)",
    ]
    is_shaded = (panel.picture != panel_input.tissue).any(axis=2)
    assert (is_shaded == np.kron(called_cells, np.ones((2, 2), bool))).all()
    assert labelled.width_pt > called.width_pt + 1  # both are seen where they coincide
    panel = panels.outlines_panel(input_of(label=np.full(4, -1, np.int8)))
    assert len(panel.legend) == 1


def test_unsmoothed_and_uncertainty_panels_have_their_scales():
    values = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    panel_input = input_of(unsmoothed=values, unsmoothed_threshold=0.4, uncertainty=values)
    panel = panels.layer_panel(panel_input, "unsmoothed")
    assert panel.color_bar.threshold == 0.4
    assert (panel.picture[1, 2] == color_of("viridis", 0.4)).all()
    panel = panels.layer_panel(panel_input, "uncertainty")
    assert panel.color_bar.vmax == pytest.approx(np.percentile(values, 99.5))
    assert (panel.picture[1, 2] == color_of("cividis", 1.0)).all()


def test_slide_panel_outlines_the_tissue():
    panel_input = input_of(slide=slide_view())
    panel = panels.slide_panel(panel_input)
    # 6 px of tissue wide are all that is asked for: the longer side of 20 px becomes 6.
    assert panel.picture.shape == (6, 3, 3)
    assert panel.size == (3, 6)
    assert panel.unit_mm == pytest.approx(4 / 3)
    fine = PanelInput(panel_input.patient_map, np.zeros((80, 120, 3), np.uint8), True, 40, 0.5)
    panel = panels.slide_panel(fine)
    assert (panel.picture == slide_view().thumbnail).all()
    (lines,) = panel.legend
    left, right = [[2, 5], [2, 15]], [[8, 5], [8, 15]]
    assert lines.ends.tolist() == [[[2, 5], [8, 5]], [[2, 15], [8, 15]], left, right]
    assert panel.unit_mm == pytest.approx(0.4)
