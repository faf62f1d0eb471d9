import gc
import logging
import math
import threading
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.slides.tiffs import damage, halved, noise, spy_on, write_tiff
from wsi_idc.core.errors import SlideError
from wsi_idc.geometry.grid import mosaic
from wsi_idc.runtime.prefetch import THREAD_NAME
from wsi_idc.slides.patches import (
    SlidePatches,
    choose_level,
    group_reads,
    is_native,
    make_grid,
    tissue_fraction,
)
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.synthetic.slide import write_slide

# A grid of 4 x 6 known patches of 50 px at 4 um/px; the level of 8 um/px is another's.
PATCHES = noise(24 * 50, 50, seed=1).reshape(24, 50, 50, 3)
CELLS = np.indices((4, 6), np.int32).reshape(2, -1).T
STITCHED = mosaic(PATCHES, CELLS, shape=(4, 6), fill=255)


def all_of(slide: Slide, **options) -> SlidePatches:
    options = {"patch_px": 50, "mpp": 4.0, "min_tissue": 0} | options
    return SlidePatches(slide, **options)


def cut(path: Path, *, mpp_given=None, **options) -> tuple[SlidePatches, np.ndarray]:
    """Return the patches of a slide and their pixels."""
    with open_slide(path, mpp=mpp_given) as slide:
        patches = all_of(slide, **options)
        return patches, np.concatenate(list(patches.batches(7)))


def readers() -> list[threading.Thread]:
    return [found for found in threading.enumerate() if found.name.startswith(THREAD_NAME)]


@pytest.fixture(autouse=True)
def _no_readers_of_other_tests() -> None:
    gc.collect()


@pytest.fixture
def stitched(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "S1.tif", STITCHED, halved(STITCHED), mpp=4.0)


def test_patches_of_a_stitched_slide_are_the_original_ones(stitched):
    patches, found = cut(stitched)
    assert (len(patches), patches.shape, patches.level) == (24, (4, 6), 0)
    assert patches.row_col.dtype == patches.coords.dtype == np.int32
    assert np.array_equal(patches.row_col, CELLS)
    assert np.array_equal(patches.coords, CELLS[:, ::-1] * 50)
    assert found.dtype == np.uint8
    assert np.array_equal(found, PATCHES)


@pytest.mark.parametrize("size", [1, 5, 24, 100])
def test_batches_are_full_and_have_the_same_patches_at_any_size(stitched, size):
    with open_slide(stitched) as slide:
        batches = list(all_of(slide).batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (24 // size - (24 % size == 0))
    assert np.array_equal(np.concatenate(batches), PATCHES)


def test_finer_slides_are_averaged_exactly(tmp_path):
    fine = STITCHED.repeat(4, axis=0).repeat(4, axis=1)
    patches, found = cut(write_tiff(tmp_path / "S1.tif", fine, mpp=1.0))
    assert np.array_equal(patches.coords, CELLS[:, ::-1] * 200)
    assert np.array_equal(found, PATCHES)


def test_level_of_the_mpp_of_the_model_is_not_resampled(tmp_path):
    patches, found = cut(write_tiff(tmp_path / "S1.tif", noise(400, 600), STITCHED, mpp=2.0))
    assert patches.level == 1
    assert np.array_equal(patches.coords, CELLS[:, ::-1] * 100)
    assert np.array_equal(found, PATCHES)


def test_next_finer_level_is_averaged(tmp_path):
    # Levels of 1, 2 and 8 um/px: a model of 4 takes the second and halves it.
    levels = [noise(400, 600), noise(200, 300, seed=1), noise(50, 75, seed=2)]
    patches, found = cut(write_tiff(tmp_path / "S1.tif", *levels, mpp=1.0))
    assert patches.level == 1
    assert patches.shape == (2, 3)
    expected = levels[1].reshape(100, 2, 150, 2, 3).mean(axis=(1, 3))
    expected = expected.reshape(2, 50, 3, 50, 3).transpose(0, 2, 1, 3, 4).reshape(6, 50, 50, 3)
    assert np.abs(found - expected).max() <= 0.5


def test_patches_are_white_beyond_the_edge(tmp_path):
    patches, found = cut(write_tiff(tmp_path / "S1.tif", STITCHED[:170, :260], mpp=4.0))
    assert patches.shape == (4, 6)
    truth = PATCHES.reshape(4, 6, 50, 50, 3).copy()
    truth[3, :, 20:] = 255
    truth[:, 5, :, 10:] = 255
    assert np.array_equal(found.reshape(truth.shape), truth)


@pytest.mark.parametrize("name", ["S1.tif", "S1.png"])
def test_plain_images_are_slides(tmp_path, name):
    Image.fromarray(STITCHED[:170, :260]).save(tmp_path / name)
    _, found = cut(tmp_path / name, mpp_given=4.0)
    tiled = write_tiff(tmp_path / "tiled.tif", STITCHED[:170, :260], mpp=4.0)
    assert np.array_equal(found, cut(tiled)[1])


def test_patches_of_a_fractional_scale_are_their_boxes(tmp_path):
    # 400.8 px a patch at level 0.
    pixels = noise(850, 1300)
    patches, found = cut(write_tiff(tmp_path / "S1.tif", pixels, mpp=0.499))
    assert patches.shape == (3, 4)
    assert patches.coords[:4, 0].tolist() == [0, 401, 802, 1202]
    scale = 4 / 0.499
    padded = np.full((1300, 1700, 3), 255, np.uint8)
    padded[:850, :1300] = pixels
    for (row, col), patch in zip(patches.row_col, found, strict=True):
        top, bottom, left, right = (round(at * 50 * scale) for at in (row, row + 1, col, col + 1))
        box = padded[top:bottom, left:right]
        assert np.array_equal(patch, cv2.resize(box, (50, 50), interpolation=cv2.INTER_AREA))


def test_smaller_stride_makes_patches_overlap(stitched):
    patches, found = cut(stitched, stride_px=25)
    assert patches.shape == (7, 11)
    for (x, y), patch in zip(patches.coords, found, strict=True):
        assert np.array_equal(patch, STITCHED[y : y + 50, x : x + 50])
    with pytest.raises(SlideError, match=r"S1.tif, 300x200 px at 4 um/px: a stride of 51 px"):
        cut(stitched, stride_px=51)


def test_tissue_selects_the_patches(tmp_path):
    slide_px = np.full((200, 300, 3), 255, np.uint8)
    slide_px[50:150, 100:200] = (200, 120, 170)
    path = write_tiff(tmp_path / "S1.tif", slide_px, mpp=4.0)
    with open_slide(path) as slide:
        patches = all_of(slide, min_tissue=0.1)
        assert patches.row_col.tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
        assert patches.shape == (4, 6)
        found = np.concatenate(list(patches.batches(3)))
        assert (found == slide_px[50, 100]).all()
        mask = np.zeros((4, 6), bool)
        mask[0, 5] = mask[3, 0] = True
        chosen = all_of(slide, tissue=mask, min_tissue=1.0)
        assert chosen.row_col.tolist() == [[0, 5], [3, 0]]
        half = np.zeros((8, 12), bool)
        half[0, 0] = True  # a quarter of the first patch
        assert all_of(slide, tissue=half, min_tissue=0.25).row_col.tolist() == [[0, 0]]
        with pytest.raises(SlideError, match=r"S1.tif: no tissue found; give a tissue mask"):
            all_of(slide, tissue=half, min_tissue=0.26)


def test_wide_gaps_between_patches_are_not_read(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "S1.tif", noise(100, 2000), mpp=4.0)
    mask = np.zeros((2, 40), bool)
    mask[0, [0, 1, 3, 39]] = True
    with open_slide(path) as slide:
        reads = spy_on(slide, monkeypatch)
        assert len(np.concatenate(list(all_of(slide, tissue=mask, min_tissue=1).batches(9)))) == 4
    assert sorted(reads) == [(0, 0, 0, 200, 50), (0, 1950, 0, 50, 50)]


def test_reads_are_bounded_at_any_width(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.slides.patches._MAX_READ_PX", 200 * 650)
    fine = STITCHED.repeat(4, axis=0).repeat(4, axis=1)
    path = write_tiff(tmp_path / "S1.tif", fine, mpp=1.0)
    with open_slide(path) as slide:
        reads = spy_on(slide, monkeypatch)
        assert np.array_equal(np.concatenate(list(all_of(slide).batches(5))), PATCHES)
    assert [(width, height) for *_, width, height in reads] == [(600, 200)] * 8


def test_coarse_slide_is_enlarged_or_refused(tmp_path, caplog):
    path = write_tiff(tmp_path / "S1.tif", np.full((80, 120, 3), 90, np.uint8), mpp=5.0)
    with caplog.at_level(logging.WARNING):
        _, found = cut(path)
    assert found.shape == (6, 50, 50, 3)
    assert (found == 90).all()
    assert "5 um/px is coarser than the model's 4; the patches are enlarged" in caplog.text
    with pytest.raises(
        SlideError, match=r"6.1 um/px \(given, but the file states 5\) is too coarse"
    ):
        cut(path, mpp_given=6.1)


def test_reader_threads_end_with_the_generator(stitched, monkeypatch):
    monkeypatch.setattr("wsi_idc.slides.patches._MAX_READ_PX", 50 * 50)
    with open_slide(stitched) as slide:
        patches = all_of(slide)
        assert readers() == []
        coming = patches.batches(2)
        next(coming)
        assert readers() != []
        coming.close()
        assert readers() == []
        for _ in patches.batches(2):
            break
        gc.collect()
        assert readers() == []
        with pytest.raises(ZeroDivisionError):
            [len(batch) / 0 for batch in patches.batches(2)]
        gc.collect()
        assert readers() == []
        assert sum(len(batch) for batch in patches.batches(2)) == 24
    assert readers() == []


def test_damage_within_a_patch_is_an_error(tmp_path):
    path = write_tiff(tmp_path / "S1.tif", STITCHED, mpp=4.0)
    damage(path)
    with open_slide(path) as slide:
        # The error of one reader must not become that of those beside it.
        slide.num_readers = 4
        coming = all_of(slide).batches(6)
        assert np.array_equal(next(coming), PATCHES[:6])
        with pytest.raises(SlideError, match=r"S1.tif: cannot be read at x 0, y \d+ of level 0"):
            list(coming)
    assert readers() == []


def test_patches_of_a_synthetic_slide(tmp_path):
    found = write_slide(tmp_path / "S1.tif", seed=1, width_px=2000, height_px=1600)
    mask = cv2.imread(str(found.mask), cv2.IMREAD_UNCHANGED) > 0
    with open_slide(found.slide) as slide:
        patches = SlidePatches(slide, patch_px=50, mpp=4.0)
        truly = SlidePatches(slide, patch_px=50, mpp=4.0, tissue=mask, min_tissue=0.5)
        assert patches.level == 2
        pixels = np.concatenate(list(patches.batches(64)))
        level = slide.read(2, 0, 0, width=500, height=400)
    for (row, col), patch in zip(patches.row_col, pixels, strict=True):
        assert np.array_equal(patch, level[row * 50 :][:50, col * 50 :][:, :50])
    have = set(map(tuple, patches.row_col.tolist()))
    assert set(map(tuple, truly.row_col.tolist())) <= have


def grid_of(width, height, *, slide_mpp=4.0, patch_px=50, mpp=4.0, stride_px=50):
    return make_grid(
        width, height, slide_mpp=slide_mpp, patch_px=patch_px, mpp=mpp, stride_px=stride_px
    )


def test_cells_are_in_row_order():
    grid = grid_of(150, 100)
    assert (grid.rows, grid.cols) == (2, 3)
    cells = grid.cells()
    assert cells.dtype == np.int32
    assert cells.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    coords = grid.coords(cells)
    assert coords.dtype == np.int32
    assert coords.tolist() == [[0, 0], [50, 0], [100, 0], [0, 50], [50, 50], [100, 50]]


def test_grid_includes_patches_on_the_edge():
    assert (grid_of(101, 100).rows, grid_of(101, 100).cols) == (2, 3)
    assert grid_of(10, 10).cols == 1
    # 400.8 px a patch: three of them end 0.4 px beyond level-0 px 1202, and 0.6 before 1203.
    assert grid_of(1202, 1, slide_mpp=0.499).cols == 3
    assert grid_of(1203, 1, slide_mpp=0.499).cols == 4


def test_stride_with_gaps_and_grid_larger_than_any_slide_are_refused():
    grid = grid_of(150, 100, stride_px=25)
    assert (grid.rows, grid.cols) == (3, 5)
    assert grid.coords(grid.cells())[4].tolist() == [100, 0]
    for stride in (0, 51, -1):
        with pytest.raises(ValueError, match="not between 1 and the patch size, 50 px"):
            grid_of(150, 100, stride_px=stride)
    assert grid_of(100_000, 50).cols == 2000
    with pytest.raises(ValueError, match="a grid of 1 x 2001 patches is too large"):
        grid_of(100_001, 50)


@pytest.mark.parametrize("stride_px", [50, 17])
def test_rounding_errors_do_not_add_up_over_300_cells(stride_px):
    # 200 um over 0.499 um/px are 400.8016... px.
    grid = grid_of(130_000, 130_000, slide_mpp=0.499, stride_px=stride_px)
    cells = np.array([[300, 299], [299, 300], [300, 300]], np.int32)
    exact = [round(Fraction(at * stride_px * 4 * 1000, 499)) for at in (299, 300)]
    assert grid.coords(cells).tolist() == [exact, exact[::-1], [exact[1]] * 2]
    if stride_px == 50:
        assert exact[1] == 120_240  # and not 300 * 401
    # On a level four times as coarse.
    edges = grid.edges(np.array([299, 300], np.int32), mpp=0.499 * 4)
    for (first, end), at in zip(edges.tolist(), (299, 300), strict=True):
        assert first == round(Fraction(at * stride_px * 1000, 499))
        assert end == round(Fraction((at * stride_px + 50) * 1000, 499))


SIDES = st.integers(1, 3000)
MPPS = st.floats(0.1, 4.0)


@given(SIDES, MPPS, st.integers(16, 256), st.floats(2.0, 8.0), st.floats(0.2, 1.0))
def test_grid_covers_the_slide_without_cells_outside(side, slide_mpp, patch_px, mpp, stride_share):
    stride_px = max(1, math.ceil(patch_px * stride_share))
    grid = grid_of(side, 1, slide_mpp=slide_mpp, patch_px=patch_px, mpp=mpp, stride_px=stride_px)
    assert grid.rows == 1
    edges = grid.edges(np.arange(grid.cols, dtype=np.int32), mpp=slide_mpp)
    assert edges[0, 0] == 0
    assert edges[-1, 0] < side
    # Where the slide has the model's pixels but for 0.1 %, patches keep their size.
    slack = 1 + (edges[-1, 1] * 1e-3 if is_native(slide_mpp, mpp) else 0)
    assert edges[-1, 1] >= side - slack
    if grid.cols > 1:
        assert edges[-2, 1] < side + slack
    if stride_px == patch_px and not is_native(slide_mpp, mpp):
        assert (edges[1:, 0] == edges[:-1, 1]).all()


def test_native_level_gives_cells_of_patch_px():
    grid = grid_of(16_000, 16_000, slide_mpp=1.0005)
    edges = grid.edges(np.arange(300, dtype=np.int32), mpp=4.002)
    assert (edges[:, 1] - edges[:, 0] == 50).all()
    assert edges[299, 0] == round(299 * 50 / 1.0005)


def test_choose_level_takes_the_coarsest_sufficient_one():
    assert choose_level([0.25, 1.0, 4.0, 16.0], 4.0) == 2
    assert choose_level([0.25, 1.0, 4.03, 16.0], 4.0) == 2
    assert choose_level([0.25, 1.0, 4.05, 16.0], 4.0) == 1
    assert choose_level([0.5, 2.0, 8.0], 4.0) == 1
    assert choose_level([5.0, 20.0], 4.0) == 0


def test_groups_stay_within_row_width_and_gap():
    rows = np.array([0, 0, 0, 0, 1, 1, 3], np.int32)
    first = np.array([0, 10, 20, 60, 0, 10, 70])
    edges = np.stack([first, first + 10], axis=1)

    def groups(**limits):
        return [(run.start, run.stop) for run in group_reads(rows, edges, **limits)]

    assert groups(max_width=1000, max_gap=1000) == [(0, 4), (4, 6), (6, 7)]
    assert groups(max_width=1000, max_gap=29) == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert groups(max_width=20, max_gap=30) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert groups(max_width=5, max_gap=30) == [(at, at + 1) for at in range(7)]
    assert group_reads(rows[:0], edges[:0], max_width=1, max_gap=1) == []


def test_tissue_fraction_of_a_mask():
    mask = np.array([[1, 0], [0, 0], [1, 1]], bool)
    fractions = {
        (0, 0, 1, 1): 0.5,
        (0, 0, 0.5, 1 / 3): 1,
        (0.25, 0, 0.75, 1 / 3): 0.5,
        (0.5, 2 / 3, 1.5, 4 / 3): 0.25,
        (0, 0.5, 1, 1): 2 / 3,
        (0.5, 0, 1, 2 / 3): 0,
    }
    found = tissue_fraction(mask, np.array([*fractions]))
    assert found == pytest.approx([*fractions.values()], abs=1e-12)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9))
def test_tissue_fraction_equals_a_slow_computation(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.5
    x, y = np.sort(rng.integers(0, 2 * width, 2)), np.sort(rng.integers(0, 2 * height, 2))
    x[1], y[1] = x[1] + 1, y[1] + 1
    # On half px the mask, with each px doubled and nothing around, says it exactly.
    fine = np.zeros((4 * height + 1, 4 * width + 1))
    fine[: 2 * height, : 2 * width] = mask.repeat(2, axis=0).repeat(2, axis=1)
    box = np.array([[x[0] / width, y[0] / height, x[1] / width, y[1] / height]]) / 2
    assert tissue_fraction(mask, box)[0] == pytest.approx(fine[y[0] : y[1], x[0] : x[1]].mean())
