import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_idc.geometry.outline import outline

MASKS = arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8)))


def lines_of(rows: list[str]) -> list[list[list[int]]]:
    return outline(np.array([[cell == "x" for cell in row] for row in rows])).tolist()


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
    assert outline(mask).tolist() == [
        [[299, 299], [300, 299]],
        [[299, 300], [300, 300]],
        [[299, 299], [299, 300]],
        [[300, 299], [300, 300]],
    ]


@given(MASKS)
def test_the_cells_come_back_from_the_vertical_lines(mask: np.ndarray):
    crossed = np.zeros((mask.shape[0], mask.shape[1] + 1), int)
    for (x0, y0), (x1, y1) in outline(mask):
        if x0 == x1:
            crossed[y0:y1, x0] += 1
    assert (crossed <= 1).all()
    assert (np.cumsum(crossed, axis=1)[:, :-1] % 2 == mask).all()


@given(MASKS)
def test_columns_are_outlined_as_rows_are(mask: np.ndarray):
    turned = {tuple(map(tuple, line[:, ::-1].tolist())) for line in outline(mask.T)}
    assert turned == {tuple(map(tuple, line.tolist())) for line in outline(mask)}
