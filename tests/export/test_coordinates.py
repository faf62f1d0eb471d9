from dataclasses import replace

import numpy as np

from tests.export.maps import full_grid, on_slide, small_map
from wsi_idc.export.coordinates import grid_transform


def test_grid_may_begin_off_the_corner_of_the_slide():
    patient_map = on_slide(small_map(full_grid(20, 30), np.zeros(600)), 0.499)
    moved = replace(patient_map, coords=patient_map.coords + np.array([131, 17], np.int32))
    place = grid_transform(moved)
    assert (place.x, place.y) == (131, 17)
