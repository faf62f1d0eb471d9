import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_idc.geometry.regions import extract_regions, largest_region, region_boundary

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
        ("... .x.", "1,1,2,1 1,2,2,2 1,1,1,2 2,1,2,2"),
        # Lines have maximal length.
        ("xxx x..", "0,0,3,0 1,1,3,1 0,2,1,2 0,0,0,2 1,1,1,2 3,0,3,1"),
        # A hole has a boundary too.
        ("xxx x.x xxx", "0,0,3,0 1,1,2,1 1,2,2,2 0,3,3,3 0,0,0,3 1,1,1,2 2,1,2,2 3,0,3,3"),
        # The last cell of a large grid.
        (
            f"{'.' * 300} " * 299 + "." * 299 + "x",
            "299,299,300,299 299,300,300,300 299,299,299,300 300,299,300,300",
        ),
        (".. ..", ""),
        (".", ""),
    ],
)
def test_boundary_lines(rows: str, lines: str):
    boundary = region_boundary(grid(*rows.split()))
    assert boundary.shape[1:] == (2, 2)
    found = [",".join(map(str, line)) for line in boundary.reshape(-1, 4).tolist()]
    assert found == lines.split()


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


def test_largest_region_joins_cells_at_edges_and_not_at_corners():
    mask = grid("xx.x", "..x.", "...x")
    cells = np.argwhere(np.ones_like(mask)).astype(np.int32)
    area = np.ones(len(cells), np.float32)
    assert len(extract_regions(mask)) == 4
    assert largest_region(mask.ravel(), cells, area) == 2
    area[0] = 3.5
    assert largest_region(mask.ravel(), cells, area) == 4.5
    assert largest_region(np.zeros(3, bool), cells[:3], area[:3]) == 0
