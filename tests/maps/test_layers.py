import numpy as np

from tests.small_maps import small_map
from wsi_idc.maps.layers import crop_to_patches, layers_of, robust_max


def test_layers_have_one_order_and_one_title():
    values = np.full(4, 0.25, np.float32)
    layers = layers_of(small_map(unsmoothed=values, unsmoothed_threshold=0.5, uncertainty=values))
    assert [(layer.name, layer.title, layer.colormap) for layer in layers] == [
        ("tissue", "Tissue", ""),
        ("probability", "Probability of IDC", "viridis"),
        ("unsmoothed", "Probability, not smoothed", "viridis"),
        ("cam", "Grad-CAM of IDC", "inferno"),
        ("labels", "Labels", ""),
        ("uncertainty", "Uncertainty", "cividis"),
    ]
    assert [layer.vmax for layer in layers[1:]] == [1, 1, 4, 1, 0.25]
    assert layers[4].classes == {0: "non-IDC", 1: "IDC", -1: "unknown"}


def test_missing_quantities_have_no_layer():
    bare = small_map(cam=None, label=np.full(4, -1, np.int8))
    assert [layer.name for layer in layers_of(bare, has_tissue=False)] == ["probability"]


def test_cropped_grid_begins_with_the_first_patch():
    cropped = crop_to_patches(small_map([(2, 3), (3, 5)]))
    assert cropped.row_col.tolist() == [[0, 0], [1, 2]]


def test_robust_max_ignores_a_single_glowing_pixel_and_nan():
    values = np.full(1001, 2, np.float32)
    values[[7, 9]] = 1000, np.nan
    assert robust_max(values) == 2
    for value in (0, -1, np.nan):  # 1 without positive values
        assert robust_max(np.full((2, 3), value, np.float32)) == 1
