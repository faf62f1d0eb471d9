from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.export.maps import full_grid, on_slide, small_map
from wsi_idc.core.errors import MapError
from wsi_idc.export.patch_table import grid_transform, write_csv


def test_grid_of_a_pack_has_cells_of_one_patch():
    place = grid_transform(small_map([[0, 1], [2, 3]], [0.1, 0.9]))
    assert (place.x, place.y, place.side, place.mpp) == (0, 0, 50, 4)
    assert place.points(np.array([[3, 2], [4, 3]])).tolist() == [[150, 100], [200, 150]]


def test_grid_of_a_slide_does_not_drift():
    cells = full_grid(300, 300)
    patient_map = on_slide(small_map(cells, np.zeros(len(cells))), 0.2527)
    place = grid_transform(patient_map)
    side = 50 * 4 / 0.2527  # 791.45 px: rounded ones would be off by 135 px at the end
    assert place.points(np.array([[300, 300]])).tolist() == [
        [pytest.approx(300 * side, abs=1e-3)] * 2
    ]
    corners = place.points(cells[:, ::-1])
    assert np.abs(corners - patient_map.coords).max() <= 0.5


def test_grid_may_begin_off_the_corner_of_the_slide():
    patient_map = on_slide(small_map(full_grid(20, 30), np.zeros(600)), 0.499)
    moved = replace(patient_map, coords=patient_map.coords + np.array([131, 17], np.int32))
    place = grid_transform(moved)
    assert (place.x, place.y) == (131, 17)


def test_image_coordinates_begin_at_the_image():
    patient_map = on_slide(small_map(full_grid(2, 2), np.zeros(4)), 0.5)
    place = grid_transform(patient_map, "image")
    assert (place.x, place.y, place.side, place.mpp) == (0, 0, 50, 4)


def test_corners_off_the_grid_are_refused():
    patient_map = small_map(full_grid(3, 3), np.zeros(9))
    coords = patient_map.coords.copy()
    coords[4] += 2
    with pytest.raises(MapError, match="are not on a grid of 50 px"):
        grid_transform(replace(patient_map, coords=coords))


def test_csv_begins_with_the_columns_of_wsinfer(tmp_path: Path):
    patient_map = small_map(
        [[0, 1], [1, 0]],
        [0.25, 0.75],
        label=np.array([-1, 1], np.int8),
        cam=np.array([[[0, 1], [2, 3]], [[0, 0], [0, 0.5]]], np.float32),
        uncertainty=np.array([0.125, 0.25], np.float32),
        smoothed=np.array([0.5, 0.625], np.float32),
    )
    write_csv(patient_map, tmp_path / "P1.csv")
    first, *lines = (tmp_path / "P1.csv").read_text().splitlines()
    assert first == (
        "minx,miny,width,height,prob_non-IDC,prob_IDC,row,col,logit_non-IDC,logit_IDC,"
        "label,uncertainty,smoothed,cam_mean,cam_max"
    )
    assert lines == [
        "50,0,50,50,0.75,0.25,0,1,0,-1.098612,-1,0.125,0.5,1.5,3",
        "0,50,50,50,0.25,0.75,1,0,0,1.098612,1,0.25,0.625,0.125,0.5",
    ]


def test_csv_has_no_column_of_a_missing_quantity(tmp_path: Path):
    write_csv(small_map([[0, 0]], [0.5]), tmp_path / "P1.csv")
    table = pd.read_csv(tmp_path / "P1.csv")
    assert table.columns.tolist()[-3:] == ["logit_non-IDC", "logit_IDC", "label"]


def test_csv_patches_are_integers_without_gaps(tmp_path: Path):
    patient_map = on_slide(small_map(full_grid(300, 300), np.zeros(90_000)), 0.2527)
    write_csv(patient_map, tmp_path / "P1.csv")
    table = pd.read_csv(tmp_path / "P1.csv")
    assert (table.dtypes[["minx", "miny", "width", "height"]] == np.int64).all()
    np.testing.assert_array_equal(table[["minx", "miny"]], patient_map.coords)
    assert set(table["width"]) == {791, 792}
    right = (table["minx"] + table["width"]).to_numpy().reshape(300, 300)
    np.testing.assert_array_equal(right[:, :-1], table["minx"].to_numpy().reshape(300, 300)[:, 1:])
    assert right[0, -1] == pytest.approx(300 * 200 / 0.2527, abs=0.5)
