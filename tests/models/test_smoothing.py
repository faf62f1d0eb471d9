from typing import Any

import numpy as np
import pytest

from wsi_idc.models.smoothing import NeighborModel, Smoothing, smooth_slides

WEIGHTS = (1.0, 0.5, 0.0, 0.0, 0.0, 0.0)


def model(**values: Any) -> NeighborModel:
    return NeighborModel(
        **{"weights": WEIGHTS, "bias": 0.1, "threshold": 0.5, "patch_um": 200.0} | values
    )


@pytest.mark.parametrize(
    "values",
    [
        {"weights": WEIGHTS[:-1]},
        {"weights": (np.nan, *WEIGHTS[1:])},
        {"weights": (1e308, *WEIGHTS[1:])},
        {"bias": np.inf},
        {"threshold": 1.5},
        {"patch_um": 0.0},
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any]):
    with pytest.raises(ValueError, match=r"neighbor model|out of range"):
        model(**values)


def test_neighbors_of_the_same_slide_count():
    cells = np.array([[0, 0], [0, 1], [0, 0], [0, 1]], np.int32)
    odds, slide = np.array([1.0, 3.0, -2.0, -4.0]), np.array(["a", "a", "b", "b"])
    result = smooth_slides(model(), odds, slide, cells, cell_um=200.0)
    np.testing.assert_allclose(result, [2.6, 3.6, -3.9, -4.9])


def test_overlapping_patches_have_neighbors_at_the_side_of_a_patch():
    cells = np.array([[0, 0], [0, 1], [0, 2]], np.int32)
    result = model().smooth(np.array([1.0, 5.0, 3.0]), cells, cell_um=100.0)
    # The middle patch has no neighbor at 200 um, so its own value takes the place of their mean.
    np.testing.assert_allclose(result, [1 + 0.5 * 3 + 0.1, 5 + 0.5 * 5 + 0.1, 3 + 0.5 * 1 + 0.1])


def test_extreme_log_odds_do_not_outweigh_the_neighbors():
    cells = np.array([[0, 0], [0, 1]], np.int32)
    result = model(bias=0.0).smooth(np.array([-1.0, 13.0]), cells, cell_um=200.0)
    np.testing.assert_allclose(result, [-1 + 0.5 * 6, 6 - 0.5])


def test_records_have_only_numbers():
    record = model().record()
    assert list(record) == [f"weight_{n}" for n in range(6)] + ["bias", "threshold", "patch_um"]
    gaussian = Smoothing(sigma_um=1.0, temperature=2.0, threshold=0.3)
    assert gaussian.record() == {"sigma_um": 1, "temperature": 2, "threshold": 0.3}
