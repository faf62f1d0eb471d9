import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.packs import Cell, block, flat, make_pack, pixels_of
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack
from wsi_idc.explore.pixel_statistics import CHANNELS, perceptual_hash, pixel_statistics


@pytest.fixture
def mixed(tmp_path: Path) -> Pack:
    """Return a pack of full and small patches of every label."""
    pale = (220 + pixels_of("p", 0, 0) // 8).astype(np.uint8)
    cells = [
        *block("a", 2, 3, label=1),
        *block("b", 1, 2),
        Cell("b", 1, 0, 0, pixels_of("b", 1, 0, height=20, width=50)),
        Cell("b", 1, 1, -1, pixels_of("b", 1, 1, height=3, width=7)),
        Cell("c", 0, 0, -1, pale),
        Cell("c", 0, 1, 1, flat(255, 255, 255)),
    ]
    return make_pack(tmp_path / "a.h5", cells)


def test_statistics_are_those_of_a_plain_loop(mixed: Pack):
    table = pixel_statistics(mixed).table
    assert len(table) == len(mixed)
    for position, row in enumerate(table.itertuples()):
        height, width = mixed.index.loc[position, ["height", "width"]]
        patch = mixed.patches[position, :height, :width]
        wide = patch.astype(np.int64)
        gray = cv2.cvtColor(np.ascontiguousarray(patch), cv2.COLOR_RGB2GRAY)
        color = wide.max(axis=2) - wide.min(axis=2)
        tissue = (gray < 220) & (color >= 20)
        assert (row.num_px, row.tissue_px) == (height * width, tissue.sum())
        density = -np.log10(np.maximum(wide, 1) / 255)
        for channel, name in enumerate(CHANNELS):
            values = wide[..., channel]
            assert getattr(row, f"sum_{name}") == values.sum()
            assert getattr(row, f"squares_{name}") == (values**2).sum()
            assert getattr(row, f"od_{name}") / 1000 == pytest.approx(
                density[..., channel][tissue].sum(), abs=0.0005 * tissue.sum() + 1e-9
            )
        dim = (gray < 200) & (color < 30)
        num_lines = [sum(line.mean() >= 0.9 for line in lines) for lines in (dim, dim.T)]
        assert row.dim_lines == max(num_lines)


def test_mean_patches_are_of_full_size_only(mixed: Pack, tmp_path: Path):
    means = pixel_statistics(mixed).mean_patches
    labels = mixed.index["label"].to_numpy()
    is_full = (mixed.index[["height", "width"]] == 50).all(axis=1).to_numpy()
    assert list(means) == [0, 1, -1]
    for label, mean in means.items():
        expected = mixed.patches[(labels == label) & is_full].mean(axis=0) / 255
        np.testing.assert_allclose(mean, expected, rtol=1e-12)
    cells = [Cell("a", 0, 0, 1), Cell("a", 0, 1, 0, pixels_of("a", 0, 1, width=9))]
    assert list(pixel_statistics(make_pack(tmp_path / "b.h5", cells)).mean_patches) == [1]


def test_patches_are_read_in_several_blocks(tmp_path: Path):
    pack = make_pack(tmp_path / "a.h5", block("a", 30, 20))
    expected = pack.patches[..., 0].sum(axis=(1, 2), dtype=np.int64)
    assert len(expected) == 600
    assert pixel_statistics(pack).table["sum_red"].tolist() == expected.tolist()


def test_a_truncated_pack_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pack = make_pack(tmp_path / "a.h5", block("a", 2, 2))
    monkeypatch.setattr(Pack, "check_same", lambda pack: os.truncate(pack.file, end))
    end = pack.path.stat().st_size - 8000
    with pytest.raises(DataError, match="truncated"):
        pixel_statistics(pack)


def test_the_hash_is_independent_of_brightness_and_contrast():
    rng = np.random.default_rng(3)
    images = np.stack([cv2.GaussianBlur(rng.random((50, 50)), (0, 0), 3) for _ in range(50)])
    images = (images - images.min()) / np.ptp(images)
    hashes = perceptual_hash((images * 200).astype(np.uint8))
    darker = perceptual_hash((images * 150 + 20).astype(np.uint8))
    num_bits = np.array([bin(int(a ^ b)).count("1") for a, b in zip(hashes, darker, strict=True)])
    assert np.median(num_bits) == 0
    assert num_bits.max() <= 3
    assert len(set(hashes.tolist())) == 50
    # In the hash of the inverted image every bit differs.
    inverted = perceptual_hash((200 - (images * 200).astype(np.uint8)).astype(np.uint8))
    assert set((hashes ^ inverted).tolist()) == {2**63 - 1}


@pytest.mark.parametrize("side", [1, 5, 50, 255])
def test_an_image_of_one_color_has_the_hash_0(side: int):
    for value in (0, 1, 77, 255):
        assert perceptual_hash(np.full((2, side, side), value, np.uint8)).tolist() == [0, 0]
