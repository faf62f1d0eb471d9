import numpy as np
import pytest
from scipy.special import expit

from wsi_idc.inference.calibration import best_f1_threshold
from wsi_idc.inference.neighbors import MIN_SLIDES, complete_rows, fit_neighbor_model
from wsi_idc.models.smoothing import ring_inputs

SIDE = 12
CELLS = np.argwhere(np.ones((SIDE, SIDE))).astype(np.int32)
LABEL = (CELLS[:, 1] >= SIDE // 2).astype(np.int64)


def slides_of(num: int) -> tuple[np.ndarray, ...]:
    """Return log odds, labels, slides and cells of slides whose right half is IDC."""
    rng = np.random.default_rng(0)
    label, cells = np.tile(LABEL, num), np.tile(CELLS, (num, 1))
    odds = rng.normal(2.0 * label - 1, 2.0)
    return odds, label, np.repeat(np.arange(num), len(LABEL)), cells


def test_neighbors_separate_classes_that_noise_mixes():
    odds, label, slide, cells = slides_of(MIN_SLIDES)
    options = {"patch_um": 200.0, "choose_threshold": best_f1_threshold}
    model = fit_neighbor_model(odds, label, slide, cells, **options)
    assert model is not None
    assert all(weight > 0 for weight in model.weights[:3])
    assert model.patch_um == 200
    rows = slide == 0
    refined = model.smooth(odds[rows], cells[rows], cell_um=200.0)
    assert ((odds[rows] > 0) == label[rows]).mean() < 0.75
    assert ((expit(refined) >= model.threshold) == label[rows]).mean() > 0.95
    # The weights apply to values that are not standardized.
    by_hand = ring_inputs(odds[rows], cells[rows]) @ np.array(model.weights) + model.bias
    np.testing.assert_allclose(refined, by_hand)


def test_flips_and_turns_do_not_change_the_result():
    odds, label, slide, cells = slides_of(MIN_SLIDES)
    options = {"patch_um": 200.0, "choose_threshold": best_f1_threshold}
    model = fit_neighbor_model(odds, label, slide, cells, **options)
    assert model is not None
    first, straight = odds[: len(CELLS)], CELLS
    expected = model.smooth(first, straight, cell_um=200.0)
    for turned in (CELLS[:, ::-1], SIDE - 1 - CELLS, CELLS[:, ::-1] * (1, -1) + (0, SIDE - 1)):
        result = model.smooth(first, turned.astype(np.int32), cell_um=200.0)
        np.testing.assert_allclose(result, expected)


def test_too_few_slides_have_no_model(caplog: pytest.LogCaptureFixture):
    odds, label, slide, cells = slides_of(MIN_SLIDES - 1)
    options = {"patch_um": 200.0, "choose_threshold": best_f1_threshold}
    with caplog.at_level("INFO"):
        assert fit_neighbor_model(odds, label, slide, cells, **options) is None
    assert "3 val slides are complete, and the neighbor model needs 4" in caplog.text
    one_class = np.zeros_like(np.tile(LABEL, MIN_SLIDES))
    odds, _, slide, cells = slides_of(MIN_SLIDES)
    assert fit_neighbor_model(odds, one_class, slide, cells, **options) is None


def test_a_slide_with_a_thinned_class_is_not_complete():
    _, label, slide, cells = slides_of(2)
    kept = (slide == 0) | (label == 1) | (cells.sum(axis=1) % 4 == 0)
    assert len(label) == 288
    rows = complete_rows(label[kept], slide[kept], cells[kept])
    assert rows.tolist() == list(range(144))
    no_rows = np.empty(0, int)
    assert len(complete_rows(label[no_rows], slide[no_rows], cells[no_rows])) == 0
