import numpy as np
import pytest

from tests.small_maps import hand_map
from wsi_idc.maps.layers import robust_max
from wsi_idc.report.layers import (
    PALETTES,
    cam_levels,
    crop_image,
    downscale_cams,
    histogram,
    outcomes,
    patch_columns,
)


def test_image_is_cropped_to_the_patches():
    image = np.arange(200 * 200 * 3, dtype=np.uint32).reshape(200, 200, 3)
    np.testing.assert_array_equal(crop_image(image, hand_map()), image[:, 50:])


def test_patch_columns_have_one_entry_a_patch():
    columns = patch_columns(hand_map(class_names=("no", "<b>")))
    assert {name: list(values) for name, values in columns.items()} == {
        "row": [0, 1, 1, 2, 3],
        "col": [1, 2, 3, 1, 3],
        "x": [50, 100, 150, 50, 150],
        "y": [0, 50, 50, 100, 150],
        "x_mm": pytest.approx([0.1, 0.3, 0.5, 0.1, 0.5]),
        "y_mm": pytest.approx([0.1, 0.3, 0.3, 0.5, 0.7]),
        "cell": [0, 4, 5, 6, 11],
        "probability": pytest.approx([0.9, 0.8, 0.2, 0.1, 0.7]),
        "label": [1, 0, 1, 0, -1],
        "cam_max": [5, 11, 17, 23, 29],
        "on_slide": [1, 1, 1, 1, 1],
        "is_counted": [1, 1, 1, 1, 1],
    }
    values = np.full(5, 0.25, np.float32)
    more = patch_columns(hand_map(cam=None, uncertainty=values, unsmoothed=values))
    assert more.keys() - columns.keys() == {"uncertainty", "unsmoothed"}
    assert "cam_max" not in more


def test_outcomes_have_codes():
    label = np.array([1, 0, 1, 0, -1, -1], np.int8)
    called = np.array([True, True, False, False, True, False])
    assert outcomes(label, called).tolist() == [1, 2, 3, 4, 0, 0]


def test_cam_levels_have_one_scale_for_the_patient():
    patient_map = hand_map(cam=np.arange(10, dtype=np.float32).reshape(5, 1, 2))
    top = robust_max(patient_map.cam)
    assert top == pytest.approx(np.percentile(np.arange(10), 99.5))
    levels = cam_levels(patient_map)
    assert levels.shape == (4, 6)
    assert levels.dtype == np.uint8
    expected = [1 + round(min(value / top, 1) * 254) for value in range(10)]
    assert levels[0, :2].tolist() == expected[:2]
    assert levels[3, 4:].tolist() == expected[8:] == [expected[8], 255]
    assert (levels[0, 2:] == 0).all()
    cam = np.zeros((5, 2, 2), np.float32)
    cam[0, 0, 0] = np.nan
    assert cam_levels(hand_map(cam=cam))[0, 0] == 1


def test_large_cams_are_shrunk_by_means():
    cam = np.arange(2 * 32 * 20, dtype=np.float32).reshape(2, 32, 20)
    small = downscale_cams(cam)
    assert small.shape == (2, 16, 16)
    assert small[1, 3, 0] == cam[1, 6:8, :1].mean()
    assert small[0, 0, 15] == cam[0, :2, 18:].mean()
    assert downscale_cams(cam[:, :16, :16]).shape == (2, 16, 16)


def test_histogram_stacks_labels():
    bars = histogram(hand_map().probability, hand_map().label)
    assert len(bars["left"]) == 40
    assert bars["top_1"].sum() == pytest.approx(2 / 5)
    # 0.9 is of label 1, 0.8 of label 0, 0.7 unknown: each in a bin of its own.
    for label, value in ((1, 0.9), (0, 0.8), (-1, 0.7)):
        place = int(np.flatnonzero(bars[f"top_{label}"] > bars[f"bottom_{label}"])[-1])
        assert bars["left"][place] - 1e-6 <= np.float32(value) < bars["right"][place] + 1e-6
    unlabelled = histogram(hand_map().probability, np.full(5, -1, np.int8))
    assert unlabelled.keys() == {"left", "right", "bottom_-1", "top_-1"}


def test_low_values_are_transparent():
    for name in ("probability", "unsmoothed", "cam"):
        alpha = [int(color[7:], 16) for color in PALETTES[name]]
        assert (alpha[0], alpha[64], alpha[128], alpha[255]) == (0, 128, 255, 255)
    assert {color[7:] for color in PALETTES["uncertainty"]} == {"ff"}
    assert PALETTES["probability"][255] == "#fde725ff"
