import numpy as np
import pytest

from wsi_idc.plotting.raster import color_table, downscale, overlay_colormap, resize, to_gray


def test_color_table_has_colors_and_opacity():
    table = color_table("viridis", opacity=0.5)
    assert table.shape == (256, 4)
    assert table[0].tolist() == [68, 1, 84, 128]
    assert table[-1].tolist() == [253, 231, 37, 128]
    assert color_table("viridis")[7, 3] == 255


def test_overlay_hides_the_ground_except_for_nan():
    ground = np.full((2, 4, 3), 9, np.uint8)
    painted = overlay_colormap(ground, np.array([[0, np.nan]], np.float32), color_table("viridis"))
    assert (painted[:, :2] == [68, 1, 84]).all()
    assert (painted[:, 2:] == 9).all()
    assert (ground == 9).all()


def test_overlay_blends_by_opacity():
    ground = np.full((1, 3, 3), 200, np.uint8)
    table = np.zeros((256, 4), np.uint8)
    table[:, 0], table[:, 3] = np.arange(256), 128
    painted = overlay_colormap(ground, np.array([[0, 0.5, 1]], np.float32), table)
    # (200 * 127 + red * 128) / 255; 0.5 is the color 128, 1 is the last one
    assert painted[0].tolist() == [[100, 100, 100], [164, 100, 100], [228, 100, 100]]


def test_overlay_clips_values():
    table = color_table("magma")
    values = np.array([[-3, -np.inf, 7, np.inf]], np.float32)
    painted = overlay_colormap(np.zeros((1, 4, 3), np.uint8), values, table)
    assert (painted[0, :2] == table[0, :3]).all()
    assert (painted[0, 2:] == table[-1, :3]).all()


@pytest.mark.parametrize("side", [300, 301, 599, 1000, 2126])
def test_overlay_of_a_large_grid_does_not_drift(side: int):
    values = np.zeros((300, 300), np.float32)
    values[299, 299] = 1
    table = color_table("gray")
    painted = overlay_colormap(np.zeros((side, side, 3), np.uint8), values, table)[..., 0]
    rows, cols = np.nonzero(painted)
    # the pixels whose centre is in the cell: from 299/300 of the side to its end
    first = int(np.ceil(side * 299 / 300 - 0.5))
    assert rows.min() == cols.min() == first
    assert rows.max() == cols.max() == side - 1
    assert len(rows) == (side - first) ** 2


def test_gray_has_no_hue():
    picture = to_gray(np.array([[[255, 0, 0], [10, 10, 10]]], np.uint8))
    assert picture.tolist() == [[[76, 76, 76], [10, 10, 10]]]


@pytest.mark.parametrize("cell_px", [1, 3, 7, 10])
def test_downscale_keeps_cells_apart(cell_px: int):
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 255, (4, 300), dtype=np.uint8)
    picture = shades.repeat(10, axis=0).repeat(10, axis=1)
    shrunk = downscale(picture, height=4 * cell_px, width=300 * cell_px)
    assert (shrunk == shades.repeat(cell_px, axis=0).repeat(cell_px, axis=1)).all()


def test_downscale_takes_means_and_never_enlarges():
    grid = np.array([[0, 2, 4, 6]], np.float32)
    assert downscale(grid, height=1, width=2).tolist() == [[1, 5]]
    assert downscale(grid, height=9, width=9) is grid


def test_resize_enlarges_by_copies():
    grid = np.array([[1, 2], [3, 4]])
    assert resize(grid, height=2, width=5).tolist() == [[1, 1, 2, 2, 2], [3, 3, 4, 4, 4]]
    mixed = resize(np.array([[0, 2], [4, 6]], np.float32), height=1, width=4)
    assert mixed.tolist() == [[2, 2, 4, 4]]
