import numpy as np
import pytest

from wsi_idc.maps.layers import robust_max


def test_a_single_glowing_pixel_does_not_darken_the_rest():
    values = np.ones(1001, np.float32)
    values[7] = 1000
    assert robust_max(values) == 1
    values[9] = np.nan
    assert robust_max(values) == 1


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_where_nothing_glows_full_strength_is_one(value):
    assert robust_max(np.full((2, 3), value, np.float32)) == 1
