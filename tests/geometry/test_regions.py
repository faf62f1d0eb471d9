import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_idc.geometry.regions import extract_regions, region_boundary


def grid(*rows: str) -> np.ndarray:
    return np.array([[cell == "x" for cell in row] for row in rows])


def test_a_square_has_four_corners():
    (region,) = extract_regions(grid("....", ".xx.", ".xx."))
    assert region.cells.tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert region.polygon.equals(shapely.box(1, 1, 3, 3))
    assert len(region.polygon.exterior.coords) == 5


def test_a_hole_stays_a_hole():
    (region,) = extract_regions(grid("xxx", "x.x", "xxx"))
    assert region.polygon.equals(shapely.box(0, 0, 3, 3) - shapely.box(1, 1, 2, 2))
    (hole,) = region.polygon.interiors
    assert len(hole.coords) == 5


def test_a_corner_does_not_join():
    regions = extract_regions(grid("x..", ".xx"))
    assert [region.cells.tolist() for region in regions] == [[[1, 1], [1, 2]], [[0, 0]]]
    assert all(region.polygon.is_valid for region in regions)


def test_a_hole_that_touches_the_outline_by_a_corner_is_valid():
    (region,) = extract_regions(grid("xx.", "x.x", "xxx"))
    assert region.polygon.is_valid
    assert region.polygon.area == 7


def test_nothing_marked_no_region():
    assert extract_regions(np.zeros((3, 4), bool)) == []


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_regions_are_valid_and_cover_the_marked_cells_alone(marked: np.ndarray):
    regions = extract_regions(marked)
    again = np.zeros_like(marked)
    for region in regions:
        assert region.polygon.geom_type == "Polygon"
        assert region.polygon.is_valid
        assert region.polygon.area == len(region.cells)
        for row, col in np.argwhere(marked):
            inside = region.polygon.contains(shapely.Point(col + 0.5, row + 0.5))
            assert inside == ([row, col] in region.cells.tolist())
        again[tuple(region.cells.T)] = True
    assert (again == marked).all()
    sizes = [len(region.cells) for region in regions]
    assert sizes == sorted(sizes, reverse=True)


MASKS = arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8)))


def lines_of(rows: list[str]) -> list[list[list[int]]]:
    return region_boundary(np.array([[cell == "x" for cell in row] for row in rows])).tolist()


def test_a_cell_has_four_sides():
    assert lines_of(["...", ".x."]) == [
        [[1, 1], [2, 1]],  # top
        [[1, 2], [2, 2]],  # bottom
        [[1, 1], [1, 2]],  # left
        [[2, 1], [2, 2]],  # right
    ]


def test_lines_are_as_long_as_they_can_be():
    assert lines_of(["xxx", "x.."]) == [
        [[0, 0], [3, 0]],
        [[1, 1], [3, 1]],
        [[0, 2], [1, 2]],
        [[0, 0], [0, 2]],
        [[1, 1], [1, 2]],
        [[3, 0], [3, 1]],
    ]


def test_a_hole_has_an_outline_too():
    ring = lines_of(["xxx", "x.x", "xxx"])
    hole = [[[1, 1], [2, 1]], [[1, 2], [2, 2]], [[1, 1], [1, 2]], [[2, 1], [2, 2]]]
    assert len(ring) == 8
    assert all(line in ring for line in hole)


@pytest.mark.parametrize("rows", [["..", ".."], ["."]])
def test_nothing_has_no_outline(rows: list[str]):
    assert lines_of(rows) == []


def test_the_last_row_and_column_of_a_large_grid_end_with_it():
    mask = np.zeros((300, 300), bool)
    mask[299, 299] = True
    assert region_boundary(mask).tolist() == [
        [[299, 299], [300, 299]],
        [[299, 300], [300, 300]],
        [[299, 299], [299, 300]],
        [[300, 299], [300, 300]],
    ]


@given(MASKS)
def test_the_cells_come_back_from_the_vertical_lines(mask: np.ndarray):
    crossed = np.zeros((mask.shape[0], mask.shape[1] + 1), int)
    for (x0, y0), (x1, y1) in region_boundary(mask):
        if x0 == x1:
            crossed[y0:y1, x0] += 1
    assert (crossed <= 1).all()
    assert (np.cumsum(crossed, axis=1)[:, :-1] % 2 == mask).all()


@given(MASKS)
def test_columns_are_outlined_as_rows_are(mask: np.ndarray):
    turned = {tuple(map(tuple, line[:, ::-1].tolist())) for line in region_boundary(mask.T)}
    assert turned == {tuple(map(tuple, line.tolist())) for line in region_boundary(mask)}
