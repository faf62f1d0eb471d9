import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_idc.geometry.grid import (
    MAX_CELLS_PER_SIDE,
    border_distance,
    cell_centers_um,
    cells_of,
    crop_center,
    mosaic,
    scatter_to_grid,
    shape_of,
    smooth,
)
from wsi_idc.geometry.regions import extract_regions, largest_region, region_boundary

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


MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def grid(*rows: str) -> np.ndarray:
    return np.array([[cell == "x" for cell in row] for row in rows])


def test_region_has_its_corners_and_keeps_its_hole():
    (region,) = extract_regions(grid("....", ".xx.", ".xx."))
    assert region.cells.tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert region.polygon.equals(shapely.box(1, 1, 3, 3))
    assert len(region.polygon.exterior.coords) == 5
    (region,) = extract_regions(grid("xxx", "x.x", "xxx"))
    assert region.polygon.equals(shapely.box(0, 0, 3, 3) - shapely.box(1, 1, 2, 2))
    (hole,) = region.polygon.interiors
    assert len(hole.coords) == 5


def test_cells_that_touch_by_a_corner_are_separate_regions():
    regions = extract_regions(grid("x..", ".xx"))
    assert [region.cells.tolist() for region in regions] == [[[1, 1], [1, 2]], [[0, 0]]]
    assert all(region.polygon.is_valid for region in regions)
    # A hole that touches the outline by a corner.
    (region,) = extract_regions(grid("xx.", "x.x", "xxx"))
    assert region.polygon.is_valid
    assert region.polygon.area == 7


@settings(deadline=None)
@given(MASKS)
def test_regions_are_valid_and_cover_exactly_the_mask(mask: np.ndarray):
    regions = extract_regions(mask)
    covered = np.zeros_like(mask)
    for region in regions:
        assert region.polygon.geom_type == "Polygon"
        assert region.polygon.is_valid
        assert region.polygon.area == len(region.cells)
        for row, col in np.argwhere(mask):
            is_inside = region.polygon.contains(shapely.Point(col + 0.5, row + 0.5))
            assert is_inside == ([row, col] in region.cells.tolist())
        covered[tuple(region.cells.T)] = True
    assert (covered == mask).all()
    sizes = [len(region.cells) for region in regions]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        # Top, bottom, left and right side of one cell.
        (["...", ".x."], [(1, 1, 2, 1), (1, 2, 2, 2), (1, 1, 1, 2), (2, 1, 2, 2)]),
        # Lines have maximal length.
        (
            ["xxx", "x.."],
            [
                *((0, 0, 3, 0), (1, 1, 3, 1), (0, 2, 1, 2)),
                *((0, 0, 0, 2), (1, 1, 1, 2), (3, 0, 3, 1)),
            ],
        ),
        # A hole has a boundary too.
        (
            ["xxx", "x.x", "xxx"],
            [
                *((0, 0, 3, 0), (1, 1, 2, 1), (1, 2, 2, 2), (0, 3, 3, 3)),
                *((0, 0, 0, 3), (1, 1, 1, 2), (2, 1, 2, 2), (3, 0, 3, 3)),
            ],
        ),
        # The last cell of a large grid.
        (
            ["." * 300] * 299 + ["." * 299 + "x"],
            [
                *((299, 299, 300, 299), (299, 300, 300, 300)),
                *((299, 299, 299, 300), (300, 299, 300, 300)),
            ],
        ),
        (["..", ".."], []),
        (["."], []),
    ],
)
def test_boundary_lines(rows: list[str], lines: list[tuple[int, ...]]):
    boundary = region_boundary(grid(*rows))
    assert boundary.shape == (len(lines), 2, 2)
    assert list(map(tuple, boundary.reshape(-1, 4).tolist())) == lines


@given(MASKS)
def test_vertical_lines_determine_the_mask(mask: np.ndarray):
    crossed = np.zeros((mask.shape[0], mask.shape[1] + 1), int)
    for (x0, y0), (x1, y1) in region_boundary(mask):
        if x0 == x1:
            crossed[y0:y1, x0] += 1
    assert (crossed <= 1).all()
    assert (np.cumsum(crossed, axis=1)[:, :-1] % 2 == mask).all()


@given(MASKS)
def test_boundary_of_the_transposed_mask_is_transposed(mask: np.ndarray):
    transposed = {tuple(map(tuple, line[:, ::-1].tolist())) for line in region_boundary(mask.T)}
    assert transposed == {tuple(map(tuple, line.tolist())) for line in region_boundary(mask)}


def test_largest_region_joins_cells_at_corners():
    mask = grid("x..x", ".x..", "...x")
    cells = np.argwhere(np.ones_like(mask)).astype(np.int32)
    assert largest_region(mask.ravel(), cells) == 2
    assert largest_region(np.zeros(3, bool), cells[:3]) == 0
