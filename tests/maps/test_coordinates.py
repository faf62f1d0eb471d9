from dataclasses import replace

import numpy as np

from tests.export.maps import full_grid, on_slide, small_map
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.maps.coordinates import grid_transform


def test_grid_may_begin_off_the_corner_of_the_slide():
    patient_map = on_slide(small_map(full_grid(20, 30), np.zeros(600)), 0.499)
    moved = replace(patient_map, coords=patient_map.coords + np.array([131, 17], np.int32))
    place = grid_transform(moved)
    assert (place.x, place.y) == (131, 17)


def test_qupath_counts_from_the_corner_of_the_scanned_area():
    patient_map = on_slide(small_map(full_grid(2, 3), np.zeros(6)), 0.5)
    slide = replace(patient_map.slide, bounds=Bounds(350, 120, 500, 400))
    cropped = replace(patient_map, slide=slide)
    for shown, coordinates, corner in (
        (cropped, "qupath", (-350, -120)),
        (cropped, "level0", (0, 0)),
        (cropped, "image", (0, 0)),
        (patient_map, "qupath", (0, 0)),
    ):
        place = grid_transform(shown, coordinates)
        assert (place.x, place.y) == corner
