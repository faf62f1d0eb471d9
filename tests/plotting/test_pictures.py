import base64
import io

import numpy as np
from PIL import Image

from wsi_idc.plotting.pictures import downscaled, grid_uri, thumbnail_uri, tissue_uri


def _pixels(uri: str, kind: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


def test_tissue_keeps_its_size_and_nearly_its_colours():
    image = np.full((60, 90, 3), (180, 90, 140), np.uint8)
    uri, scale = tissue_uri(image)
    assert scale == 1
    pixels = _pixels(uri, "jpeg")
    assert pixels.shape == image.shape
    assert np.abs(pixels.astype(int) - image).max() <= 2


def test_large_tissue_is_made_smaller_by_area():
    image = np.zeros((10, 20_000, 3), np.uint8)
    image[:, ::2] = 200
    uri, scale = tissue_uri(image)
    assert scale == 8192 / 20_000
    assert _pixels(uri, "jpeg").shape == (4, 8192, 3)
    small, half = downscaled(image, 10_000)
    assert half == 0.5
    assert (small == 100).all()
    assert _pixels(thumbnail_uri(image, 100), "jpeg").shape == (1, 100, 3)


def test_a_grid_is_one_pixel_a_cell_and_clear_where_there_is_none():
    colours = np.array([[0, 0, 0], [10, 20, 30], [255, 255, 255]], np.uint8)
    grid = np.array([[0, 0.5, np.nan], [1, 7, -1]], np.float32)
    assert _pixels(grid_uri(grid, colours), "png").tolist() == [
        [[0, 0, 0, 255], [10, 20, 30, 255], [0, 0, 0, 0]],
        [[255, 255, 255, 255], [255, 255, 255, 255], [0, 0, 0, 255]],
    ]
