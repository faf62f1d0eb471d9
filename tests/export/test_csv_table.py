from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.export.maps import full_grid, measured_map, on_slide, small_map
from wsi_idc.export.csv_table import write_csv
from wsi_idc.geometry.bounds import Bounds


def test_csv_begins_with_the_columns_of_wsinfer(tmp_path: Path):
    write_csv(measured_map(), tmp_path / "P1.csv")
    first, *lines = (tmp_path / "P1.csv").read_text().splitlines()
    assert first == (
        "minx,miny,width,height,prob_non-IDC,prob_IDC,row,col,logit_non-IDC,logit_IDC,"
        "label,uncertainty,unsmoothed,cam_mean,cam_max,source_file"
    )
    assert lines == [
        "50,0,50,50,0.75,0.25,0,1,0,-1.098612,-1,0.125,0.5,1.5,3,",
        "0,50,50,50,0.25,0.75,1,0,0,1.098612,1,,0.625,0.125,0.5,",
    ]
    write_csv(small_map([[0, 0]], [0.5]), tmp_path / "P2.csv")  # without the optional values
    header, _ = (tmp_path / "P2.csv").read_text().splitlines()
    optional = ",uncertainty,unsmoothed,cam_mean,cam_max"
    assert header == first.replace(optional, "")


def test_csv_ends_with_the_file_of_the_coordinates(tmp_path: Path):
    on_pack = replace(small_map([[0, 0]], [0.5]), provenance={"data": "data/idc.h5"})
    for patient_map, name in ((on_pack, "idc.h5"), (on_slide(on_pack, 0.5), None)):
        write_csv(patient_map, tmp_path / "P1.csv")
        table = pd.read_csv(tmp_path / "P1.csv")
        assert list(table)[-1] == "source_file"
        assert table["source_file"].tolist() == [name or patient_map.slide.name]


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


def test_csv_counts_from_the_corner_of_the_glass(tmp_path: Path):
    patient_map = on_slide(small_map(full_grid(2, 3), np.zeros(6)), 0.5)
    slide = replace(patient_map.slide, bounds=Bounds(350, 120, 500, 400))
    write_csv(replace(patient_map, slide=slide), tmp_path / "P1.csv")
    table = pd.read_csv(tmp_path / "P1.csv")
    assert table[["minx", "miny"]].to_numpy().tolist()[:2] == [[0, 0], [400, 0]]
