import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_idc.geometry.regions import regions_of


def grid(*rows: str) -> np.ndarray:
    return np.array([[cell == "x" for cell in row] for row in rows])


def test_a_square_has_four_corners():
    (region,) = regions_of(grid("....", ".xx.", ".xx."))
    assert region.cells.tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert region.polygon.equals(shapely.box(1, 1, 3, 3))
    assert len(region.polygon.exterior.coords) == 5


def test_a_hole_stays_a_hole():
    (region,) = regions_of(grid("xxx", "x.x", "xxx"))
    assert region.polygon.equals(shapely.box(0, 0, 3, 3) - shapely.box(1, 1, 2, 2))
    (hole,) = region.polygon.interiors
    assert len(hole.coords) == 5


def test_a_corner_does_not_join():
    regions = regions_of(grid("x..", ".xx"))
    assert [region.cells.tolist() for region in regions] == [[[1, 1], [1, 2]], [[0, 0]]]
    assert all(region.polygon.is_valid for region in regions)


def test_a_hole_that_touches_the_outline_by_a_corner_is_valid():
    (region,) = regions_of(grid("xx.", "x.x", "xxx"))
    assert region.polygon.is_valid
    assert region.polygon.area == 7


def test_nothing_marked_no_region():
    assert regions_of(np.zeros((3, 4), bool)) == []


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_regions_are_valid_and_cover_the_marked_cells_alone(marked: np.ndarray):
    regions = regions_of(marked)
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
