import os

import cv2
import numpy as np
import pytest

from tests.packs import Cell, block, flat, make_pack
from tests.trees import pixels_of
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.explore.pixel_statistics import CHANNELS, perceptual_hash, pixel_statistics


@pytest.fixture
def mixed(tmp_path):
    """Return a pack of full and small patches of every label."""
    small = pixels_of("b", 1, 0, height=20, width=50), pixels_of("b", 1, 1, height=3, width=7)
    pale = (220 + pixels_of("p", 0, 0) // 8).astype(np.uint8)
    cells = [
        *block("a", 2, 3, label=1),
        *block("b", 1, 2),
        Cell("b", 1, 0, 0, small[0]),
        Cell("b", 1, 1, -1, small[1]),
        Cell("c", 0, 0, -1, pale),
        Cell("c", 0, 1, 1, flat(255, 255, 255)),
    ]
    return make_pack(tmp_path / "a.h5", cells)


def test_every_measure_is_that_of_a_plain_loop(mixed):
    table = pixel_statistics(mixed).table
    assert len(table) == len(mixed)
    for at, row in enumerate(table.itertuples()):
        height, width = mixed.index.loc[at, ["height", "width"]]
        patch = mixed.patches[at, :height, :width]
        wide = patch.astype(np.int64)
        grey = cv2.cvtColor(np.ascontiguousarray(patch), cv2.COLOR_RGB2GRAY)
        colour = wide.max(axis=2) - wide.min(axis=2)
        tissue = (grey < 220) & (colour >= 20)
        assert row.num_px == height * width
        assert row.tissue_px == tissue.sum()
        density = -np.log10(np.maximum(wide, 1) / 255)
        for channel, name in enumerate(CHANNELS):
            values = wide[..., channel]
            assert getattr(row, f"sum_{name}") == values.sum()
            assert getattr(row, f"squares_{name}") == (values**2).sum()
            expected = density[..., channel][tissue].sum()
            assert getattr(row, f"od_{name}") / 1000 == pytest.approx(
                expected, abs=0.0005 * tissue.sum() + 1e-9
            )
        dim = (grey < 200) & (colour < 30)
        rows = sum(line.mean() >= 0.9 for line in dim)
        cols = sum(line.mean() >= 0.9 for line in dim.T)
        assert row.dim_lines == max(rows, cols)


def test_mean_patches_are_of_full_size_only(mixed):
    means = pixel_statistics(mixed).mean_patches
    labels = mixed.index["label"].to_numpy()
    full = (mixed.index[["height", "width"]] == 50).all(axis=1).to_numpy()
    assert list(means) == [0, 1, -1]
    for label, mean in means.items():
        expected = mixed.patches[(labels == label) & full].mean(axis=0) / 255
        np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_a_label_without_full_patches_has_no_mean(tmp_path):
    cells = [Cell("a", 0, 0, 1), Cell("a", 0, 1, 0, pixels_of("a", 0, 1, width=9))]
    assert list(pixel_statistics(make_pack(tmp_path / "a.h5", cells)).mean_patches) == [1]


def test_more_patches_than_are_read_at_a_time(tmp_path):
    pack = make_pack(tmp_path / "a.h5", block("a", 30, 20))
    table = pixel_statistics(pack).table
    assert len(table) == 600
    expected = pack.patches[..., 0].sum(axis=(1, 2), dtype=np.int64)
    assert table["sum_red"].tolist() == expected.tolist()


def test_a_pack_that_is_cut_short_meanwhile(tmp_path, monkeypatch):
    pack = make_pack(tmp_path / "a.h5", block("a", 2, 2))
    monkeypatch.setattr(Pack, "check_same", lambda pack: os.truncate(pack.file, end))
    end = pack.path.stat().st_size - 8000
    with pytest.raises(DataError, match="truncated"):
        pixel_statistics(pack)


def greys(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([cv2.GaussianBlur(rng.random((50, 50)), (0, 0), 3) for _ in range(count)])


def test_the_hash_ignores_brightness_and_contrast():
    pictures = greys(50)
    pictures = (pictures - pictures.min()) / np.ptp(pictures)
    plain = perceptual_hash((pictures * 200).astype(np.uint8))
    darker = perceptual_hash((pictures * 150 + 20).astype(np.uint8))
    other = np.array([bin(int(a ^ b)).count("1") for a, b in zip(plain, darker, strict=True)])
    assert np.median(other) == 0
    assert other.max() <= 3
    assert len(set(plain.tolist())) == 50
    # The opposite picture has every bit turned.
    opposite = perceptual_hash((200 - (pictures * 200).astype(np.uint8)).astype(np.uint8))
    assert set((plain ^ opposite).tolist()) == {2**63 - 1}


@pytest.mark.parametrize("side", [1, 5, 50, 255])
def test_one_colour_has_the_hash_0(side):
    for value in (0, 1, 77, 255):
        assert perceptual_hash(np.full((2, side, side), value, np.uint8)).tolist() == [0, 0]
