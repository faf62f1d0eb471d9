import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_idc.geometry.grid import (
    MAX_CELLS_PER_SIDE,
    border_distance,
    cell_centers_um,
    cells_of,
    crop_center,
    mosaic,
    neighbor_fraction,
    ring_means,
    scatter_to_grid,
    shape_of,
    smooth,
)

CELLS = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1).map(
    lambda cells: np.array(sorted(cells), np.int32)
)


@given(CELLS, st.integers(1, 255))
def test_cells_are_row_and_column_of_x_and_y(cells, patch_px):
    found = cells_of(cells[:, ::-1] * patch_px, patch_px=patch_px)
    assert found.dtype == np.int32
    assert (found == cells).all()


@pytest.mark.parametrize("cells", [[], [[0, -1]], [[0, MAX_CELLS_PER_SIDE]], [[2**31 - 1, 0]]])
def test_shape_reaches_from_the_origin_to_the_last_cell_of_a_possible_grid(cells):
    assert shape_of(np.array([[2, 3], [4, 1]], np.int32)) == (5, 4)
    last = MAX_CELLS_PER_SIDE - 1
    assert shape_of(np.array([[last, last]], np.int32)) == (last + 1, last + 1)
    with pytest.raises(ValueError, match="a grid"):
        shape_of(np.array(cells, np.int32).reshape(-1, 2))


@given(CELLS)
def test_grid_has_each_value_at_its_cell(cells):
    values = np.arange(len(cells), dtype=np.float32)
    grid = scatter_to_grid(values, cells, shape=shape_of(cells), fill=np.nan)
    assert grid.dtype == np.float32
    assert (grid[cells[:, 0], cells[:, 1]] == values).all()
    assert np.isfinite(grid).sum() == len(cells)


@given(CELLS, st.integers(1, 4), st.integers(1, 4), st.sampled_from([(), (3,)]))
def test_mosaic_equals_a_loop_over_blocks(cells, height, width, channels):
    shape = shape_of(cells)
    size = (len(cells), height, width, *channels)
    blocks = np.arange(np.prod(size), dtype=np.int64).reshape(size)
    expected = np.full((shape[0] * height, shape[1] * width, *channels), -1)
    for block, (row, col) in zip(blocks, cells, strict=True):
        top, left = row * height, col * width
        expected[top : top + height, left : left + width] = block
    actual = mosaic(blocks, cells, shape=shape, fill=-1)
    assert actual.dtype == blocks.dtype
    assert np.array_equal(actual, expected)


def test_cell_centers_are_in_um():
    assert cell_centers_um(3, step_um=200).tolist() == [100, 300, 500]
    assert cell_centers_um(2, step_um=200, origin_um=50).tolist() == [150, 350]


def test_distance_to_the_label_border():
    label = np.array([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    cells = np.argwhere(np.ones_like(label)).astype(np.int32)
    distance = border_distance(label.ravel(), cells).reshape(label.shape)
    assert distance.tolist() == [[2, 1, 1, 0, 0], [2, 1, 0, 0, 0], [2, 1, 0, 0, 0]]
    # Cells without a patch are not a border.
    label, cells = np.array([1, 1, 0]), np.array([[0, 0], [0, 3], [0, 5]], np.int32)
    assert border_distance(label, cells).tolist() == [2, 1, 1]
    assert border_distance(label[:2], cells[:2]).tolist() == [2, 2]


def test_smoothing_is_a_weighted_mean_of_the_existing_patches():
    cells = np.array([[0, 0], [0, 1], [2, 2]], np.int32)
    values = np.array([0.0, 1.0, 5.0])
    weight = np.exp(-0.5 * np.array([[0, 1, 8], [1, 0, 5], [8, 5, 0]]) / 0.7**2)
    expected = weight @ values / weight.sum(axis=1)
    np.testing.assert_allclose(smooth(values, cells, sigma=0.7), expected, atol=1e-3)
    assert smooth(values, cells, sigma=0).tolist() == values.tolist()
    np.testing.assert_allclose(smooth(np.full(3, 0.4), cells, sigma=2.0), 0.4)


def test_center_of_a_block_is_weighted_by_area():
    block = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert crop_center(block, fraction=1) is block
    assert crop_center(block, fraction=0.5).tolist() == [[[5, 6], [9, 10]]]
    # Three quarters of four cells are three cells.
    ramp = np.arange(4.0).reshape(1, 1, 4).repeat(4, axis=1)
    cropped = crop_center(ramp, fraction=0.75)
    assert cropped.shape == (1, 3, 3)
    np.testing.assert_allclose(cropped[0, 0], [0.5, 1.5, 2.5])
    np.testing.assert_allclose(crop_center(np.full((2, 7, 7), 3.0), fraction=0.6), 3.0)


def test_ring_means_average_the_patches_at_each_distance():
    row_col = np.argwhere(np.ones((5, 5))).astype(np.int32)
    values = np.arange(25.0)
    center = ring_means(values, row_col)[12]
    np.testing.assert_array_equal(center, [12] * 6)
    corner = ring_means(values, row_col)[0]
    # Right and below: 1 and 5; diagonal: 6; at two cells: 2 and 10; knight's moves: 7 and 11; 12.
    np.testing.assert_array_equal(corner, [0, 3, 6, 6, 9, 12])
    lonely = ring_means(np.array([3.0]), np.array([[7, 9]], np.int32))
    np.testing.assert_array_equal(lonely, [[3] * 6])


@pytest.mark.parametrize("step", [3, 50, 10**6])
def test_ring_means_have_any_step(step: int):
    """The largest grid also has room for far rings."""
    last = MAX_CELLS_PER_SIDE - 1
    row_col = np.array([[0, 0], [0, 3], [last, last]], np.int32)
    means = ring_means(np.array([1.0, 5.0, 9.0]), row_col, step=step)
    second = [1, 5, 1, 1, 1, 1] if step == 3 else [1] * 6
    np.testing.assert_array_equal(means[0], second)
    np.testing.assert_array_equal(means[2], [9] * 6)


def test_neighbor_fraction_counts_the_eight_cells():
    row_col = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [5, 5]], np.int32)
    np.testing.assert_allclose(neighbor_fraction(row_col), [3 / 8] * 4 + [0])
