import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_idc.slides.tiling import (
    choose_level,
    choose_thumbnail_level,
    fit_size,
    group_reads,
    is_native,
    make_grid,
    split_range,
    tissue_fraction,
)


def grid_of(width, height, *, slide_mpp=4.0, patch_px=50, mpp=4.0, stride_px=50):
    return make_grid(
        width, height, slide_mpp=slide_mpp, patch_px=patch_px, mpp=mpp, stride_px=stride_px
    )


def test_cells_are_in_row_order():
    grid = grid_of(150, 100)
    assert (grid.rows, grid.cols) == (2, 3)
    cells = grid.cells()
    assert cells.dtype == np.int32
    assert cells.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    coords = grid.coords(cells)
    assert coords.dtype == np.int32
    assert coords.tolist() == [[0, 0], [50, 0], [100, 0], [0, 50], [50, 50], [100, 50]]


def test_grid_includes_patches_on_the_edge():
    assert (grid_of(101, 100).rows, grid_of(101, 100).cols) == (2, 3)
    assert grid_of(10, 10).cols == 1
    # 400.8 px a patch: three of them end 0.4 px beyond level-0 px 1202, and 0.6 before 1203.
    assert grid_of(1202, 1, slide_mpp=0.499).cols == 3
    assert grid_of(1203, 1, slide_mpp=0.499).cols == 4


def test_stride_must_not_leave_gaps():
    grid = grid_of(150, 100, stride_px=25)
    assert (grid.rows, grid.cols) == (3, 5)
    assert grid.coords(grid.cells())[4].tolist() == [100, 0]
    for stride in (0, 51, -1):
        with pytest.raises(ValueError, match="need 1 to 50"):
            grid_of(150, 100, stride_px=stride)


def test_grid_larger_than_any_slide_is_refused():
    assert grid_of(100_000, 50).cols == 2000
    with pytest.raises(ValueError, match="a grid of 1 x 2001 patches; at most 2000 per side"):
        grid_of(100_001, 50)


@pytest.mark.parametrize("stride_px", [50, 17])
def test_rounding_errors_do_not_add_up_over_300_cells(stride_px):
    # 200 um over 0.499 um/px are 400.8016... px.
    grid = grid_of(130_000, 130_000, slide_mpp=0.499, stride_px=stride_px)
    cells = np.array([[300, 299], [299, 300], [300, 300]], np.int32)
    exact = [round(Fraction(at * stride_px * 4 * 1000, 499)) for at in (299, 300)]
    assert grid.coords(cells).tolist() == [
        [exact[0], exact[1]],
        [exact[1], exact[0]],
        [exact[1], exact[1]],
    ]
    if stride_px == 50:
        assert exact[1] == 120_240  # and not 300 * 401
    # On a level four times as coarse.
    edges = grid.edges(np.array([299, 300], np.int32), mpp=0.499 * 4)
    for (first, end), at in zip(edges.tolist(), (299, 300), strict=True):
        assert first == round(Fraction(at * stride_px * 1000, 499))
        assert end == round(Fraction((at * stride_px + 50) * 1000, 499))


SIDES = st.integers(1, 3000)
MPPS = st.floats(0.1, 4.0)


@given(SIDES, MPPS, st.integers(16, 256), st.floats(2.0, 8.0), st.floats(0.2, 1.0))
def test_grid_covers_the_slide_without_cells_outside(side, slide_mpp, patch_px, mpp, stride_share):
    stride_px = max(1, math.ceil(patch_px * stride_share))
    grid = grid_of(side, 1, slide_mpp=slide_mpp, patch_px=patch_px, mpp=mpp, stride_px=stride_px)
    assert grid.rows == 1
    edges = grid.edges(np.arange(grid.cols, dtype=np.int32), mpp=slide_mpp)
    assert edges[0, 0] == 0
    assert edges[-1, 0] < side
    # Where the slide has the model's pixels but for 0.1 %, patches keep their size.
    slack = 1 + (edges[-1, 1] * 1e-3 if is_native(slide_mpp, mpp) else 0)
    assert edges[-1, 1] >= side - slack
    if grid.cols > 1:
        assert edges[-2, 1] < side + slack
    if stride_px == patch_px and not is_native(slide_mpp, mpp):
        assert (edges[1:, 0] == edges[:-1, 1]).all()


def test_native_level_gives_cells_of_patch_px():
    grid = grid_of(16_000, 16_000, slide_mpp=1.0005)
    edges = grid.edges(np.arange(300, dtype=np.int32), mpp=4.002)
    assert (edges[:, 1] - edges[:, 0] == 50).all()
    assert edges[299, 0] == round(299 * 50 / 1.0005)


def test_choose_level_takes_the_coarsest_sufficient_one():
    assert choose_level([0.25, 1.0, 4.0, 16.0], 4.0) == 2
    assert choose_level([0.25, 1.0, 4.03, 16.0], 4.0) == 2
    assert choose_level([0.25, 1.0, 4.05, 16.0], 4.0) == 1
    assert choose_level([0.5, 2.0, 8.0], 4.0) == 1
    assert choose_level([5.0, 20.0], 4.0) == 0
    assert choose_thumbnail_level([1000, 500, 250], 250) == 2
    assert choose_thumbnail_level([1000, 500, 250], 251) == 1
    assert choose_thumbnail_level([1000], 1000) == 0


def test_fit_size_and_split_range():
    assert fit_size(4000, 1000, max_side=100) == (100, 25)
    assert fit_size(10, 4000, max_side=100) == (1, 100)
    assert fit_size(40, 10, max_side=100) == (40, 10)
    assert split_range(10, step=4) == [(0, 4), (4, 8), (8, 10)]


def test_groups_stay_within_row_width_and_gap():
    rows = np.array([0, 0, 0, 0, 1, 1, 3], np.int32)
    first = np.array([0, 10, 20, 60, 0, 10, 70])
    edges = np.stack([first, first + 10], axis=1)

    def cut(**limits):
        return [(run.start, run.stop) for run in group_reads(rows, edges, **limits)]

    assert cut(max_width=1000, max_gap=1000) == [(0, 4), (4, 6), (6, 7)]
    assert cut(max_width=1000, max_gap=29) == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert cut(max_width=20, max_gap=30) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert cut(max_width=5, max_gap=30) == [(at, at + 1) for at in range(7)]
    assert group_reads(rows[:0], edges[:0], max_width=1, max_gap=1) == []


def test_tissue_fraction_of_a_mask():
    mask = np.array([[1, 0], [0, 0], [1, 1]], bool)
    boxes = np.array(
        [
            [0, 0, 1, 1],
            [0, 0, 0.5, 1 / 3],
            [0.25, 0, 0.75, 1 / 3],
            [0.5, 2 / 3, 1.5, 4 / 3],
            [0, 0.5, 1, 1],
            [0.5, 0, 1, 2 / 3],
        ]
    )
    expected = [0.5, 1, 0.5, 0.25, 2 / 3, 0]
    assert tissue_fraction(mask, boxes) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9))
def test_tissue_fraction_equals_a_slow_computation(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.5
    x, y = np.sort(rng.integers(0, 2 * width, 2)), np.sort(rng.integers(0, 2 * height, 2))
    x[1], y[1] = x[1] + 1, y[1] + 1
    # On half px the mask, with each px doubled and nothing around, says it exactly.
    fine = np.zeros((4 * height + 1, 4 * width + 1))
    fine[: 2 * height, : 2 * width] = mask.repeat(2, axis=0).repeat(2, axis=1)
    box = np.array([[x[0] / width, y[0] / height, x[1] / width, y[1] / height]]) / 2
    assert tissue_fraction(mask, box)[0] == pytest.approx(fine[y[0] : y[1], x[0] : x[1]].mean())
