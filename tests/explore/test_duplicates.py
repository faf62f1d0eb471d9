import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.packs import Cell, block, make_pack, pixels_of
from wsi_idc.data.pack import Pack
from wsi_idc.explore import duplicates
from wsi_idc.explore.pixel_statistics import pixel_statistics


def find(pack: Pack, rows: list[int] | None = None) -> pd.DataFrame:
    hashes = pixel_statistics(pack).table["hash"].to_numpy(np.uint64)
    candidates = np.arange(len(pack)) if rows is None else np.array(rows, int)
    return duplicates.find_duplicates(pack, hashes, candidates)


def test_near_pairs_are_those_of_comparing_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for i, flips in enumerate([1, 2, 3, 4] * 20):
        bits = rng.choice(64, flips, replace=False)
        hashes[200 + i] = hashes[i] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    hashes = np.unique(hashes)
    pairs = [
        pair
        for pair in itertools.combinations(range(len(hashes)), 2)
        if bin(int(hashes[pair[0]] ^ hashes[pair[1]])).count("1") <= 3
    ]
    assert len(pairs) >= 60
    assert duplicates.near_pairs(hashes).tolist() == [list(pair) for pair in pairs]


def test_few_hashes_have_no_pairs_and_differing_bits_are_counted():
    for count in (0, 1):
        assert duplicates.near_pairs(np.arange(count, dtype=np.uint64)).shape == (0, 2)
    a, b = np.array([[0, 1, 2**64 - 1], [0, 2, 0]], np.uint64)
    assert duplicates.bits_apart(a, b).tolist() == [0, 2, 64]


def test_a_copy_in_another_patient_is_found(tmp_path: Path):
    copied = pixels_of("a", 0, 1)
    darker = Cell("b", 0, 7, 1, (copied * 0.9).astype(np.uint8))
    cells = [*block("a", 2, 3), *block("b", 2, 2), darker, Cell("c", 0, 2, 0, copied)]
    pack = make_pack(tmp_path / "a.h5", cells)
    table = find(pack)
    rows = table["row"].to_numpy()
    assert pack.patient_of[rows].tolist() == ["a", "b", "c"]
    assert pack.index["x"].to_numpy()[rows].tolist() == [50, 350, 100]
    assert table["group"].tolist() == [1, 1, 1]
    assert np.isnan(table["correlation"][0])
    assert table["correlation"][1:].min() > 0.99
    assert table["bits_apart"].max() <= 3


def test_copies_within_a_patient_are_not_reported(tmp_path: Path):
    copied = pixels_of("a", 0, 1)
    cells = [*block("a", 2, 3), Cell("a", 5, 5, 0, copied), *block("b", 2, 2)]
    assert find(make_pack(tmp_path / "a.h5", cells)).empty


def test_only_candidates_are_compared(tmp_path: Path):
    copied = pixels_of("a", 0, 0)
    cells = [Cell("a", 0, 0), Cell("b", 0, 0, 0, copied), Cell("b", 0, 1)]
    pack = make_pack(tmp_path / "a.h5", cells)
    assert [len(find(pack, rows)) for rows in (None, [0, 2], [])] == [2, 0, 0]


def test_different_images_with_equal_hashes_are_not_duplicates(tmp_path: Path):
    pack = make_pack(tmp_path / "a.h5", block("a", 3, 3) + block("b", 3, 3))
    assert duplicates.find_duplicates(pack, np.zeros(18, np.uint64), np.arange(18)).empty


def test_many_similar_patches_are_one_group(tmp_path: Path):
    copied = pixels_of("a", 0, 0)
    cells = [Cell(name, i // 20, i % 20, 0, copied) for name in "ab" for i in range(400)]
    table = find(make_pack(tmp_path / "a.h5", cells))
    assert len(table) == 800
    assert table["group"].unique().tolist() == [1]


def test_a_limited_comparison_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(duplicates, "_MAX_COMPARED", 3)
    duplicates.near_pairs(np.arange(4, dtype=np.uint64))
    assert "near-duplicates may be missing" not in caplog.text
    duplicates.near_pairs(np.arange(5, dtype=np.uint64))
    assert caplog.text.count("near-duplicates may be missing") == 1
