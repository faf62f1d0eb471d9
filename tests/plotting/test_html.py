import base64
import io

import numpy as np
import pytest
from PIL import Image

from wsi_idc.plotting.html import grid_uri, tissue_uri
from wsi_idc.plotting.raster import color_table


def _pixels(uri: str, kind: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


def test_tissue_uri_keeps_colors_and_shrinks_large_tissue():
    image = np.full((60, 90, 3), (180, 90, 140), np.uint8)
    uri, scale = tissue_uri(image)
    assert scale == 1
    pixels = _pixels(uri, "avif")
    assert pixels.shape == image.shape
    assert np.abs(pixels.astype(int) - image).max() <= 2
    image = np.zeros((10, 20_000, 3), np.uint8)
    image[:, ::2] = 200
    uri, scale = tissue_uri(image)
    assert scale == 8192 / 20_000
    assert _pixels(uri, "avif").shape == (4, 8192, 3)
    assert _pixels(tissue_uri(image, 100)[0], "avif").shape == (1, 100, 3)


def test_grid_uri_is_transparent_where_nan():
    grid = np.array([[0, 0.2, np.nan], [1, 7, -1]], np.float32)
    shades = [[0, 51, None], [255, 255, 0]]
    assert _pixels(grid_uri(grid, color_table("gray")), "png").tolist() == [
        [[shade] * 3 + [255] if shade is not None else [255, 255, 255, 0] for shade in row]
        for row in shades
    ]


def test_tissue_is_webp_where_pillow_has_no_avif(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsi_idc.plotting.html.features.check", lambda name: False)
    image = np.full((4, 5, 3), 99, np.uint8)
    assert _pixels(tissue_uri(image, 100)[0], "webp").shape == (4, 5, 3)
