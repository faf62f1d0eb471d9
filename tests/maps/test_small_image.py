from pathlib import Path

import numpy as np

from tests.small_maps import write_hand_map
from wsi_idc.maps.map_reader import read_image
from wsi_idc.maps.small_image import read_small_image


def test_large_tissue_is_shrunk_while_it_is_read(tmp_path: Path):
    path = write_hand_map(tmp_path)  # 4 x 4 cells of 50 px
    image = read_image(path)
    np.testing.assert_array_equal(read_small_image(path, 8192), image)
    small = read_small_image(path, 43)
    assert small.shape == (40, 40, 3)
    np.testing.assert_allclose(small[0, 10], image[:5, 50:55].mean(axis=(0, 1)), atol=0.51)
    assert read_small_image(write_hand_map(tmp_path, patches=None), 43) is None
