import itertools

import numpy as np
import pytest

from tests.packs import Cell, block, make_pack
from tests.trees import pixels_of
from wsi_idc.explore import duplicates
from wsi_idc.explore.duplicates import bits_apart, find_duplicates, near_pairs
from wsi_idc.explore.pixel_statistics import pixel_statistics


def find(pack):
    hashes = pixel_statistics(pack).table["hash"].to_numpy(np.uint64)
    return find_duplicates(pack, hashes, np.arange(len(pack)))


def darker(pixels):
    return (pixels * 0.9).astype(np.uint8)


def places(pack, found):
    rows = found["row"].to_numpy()
    return list(zip(pack.patient_of[rows], pack.index["x"].to_numpy()[rows] // 50, strict=True))


def test_near_pairs_are_those_of_comparing_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for at, flips in enumerate([1, 2, 3, 4] * 20):
        bits = rng.choice(64, flips, replace=False)
        hashes[200 + at] = hashes[at] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    hashes = np.unique(hashes)
    pairs = [
        pair
        for pair in itertools.combinations(range(len(hashes)), 2)
        if bin(int(hashes[pair[0]] ^ hashes[pair[1]])).count("1") <= 3
    ]
    assert len(pairs) >= 60
    assert near_pairs(hashes).tolist() == [list(pair) for pair in pairs]


@pytest.mark.parametrize("count", [0, 1])
def test_few_hashes_have_no_pairs(count):
    assert near_pairs(np.arange(count, dtype=np.uint64)).shape == (0, 2)


def test_bits_apart():
    one = np.array([0, 1, 2**64 - 1], np.uint64)
    assert bits_apart(one, np.array([0, 2, 0], np.uint64)).tolist() == [0, 2, 64]


def test_a_copy_in_another_patient_is_found(tmp_path):
    copied = pixels_of("a", 0, 1)
    cells = block("a", 2, 3) + block("b", 2, 2) + [Cell("b", 0, 7, 1, darker(copied))]
    cells += [Cell("c", 0, 2, 0, copied)]
    pack = make_pack(tmp_path / "a.h5", cells)
    found = find(pack)
    assert places(pack, found) == [("a", 1), ("b", 7), ("c", 2)]
    assert found["group"].tolist() == [1, 1, 1]
    assert np.isnan(found["correlation"][0])
    assert found["correlation"][1:].min() > 0.99
    assert found["bits_apart"].max() <= 3


def test_copies_within_a_patient_are_not_reported(tmp_path):
    copied = pixels_of("a", 0, 1)
    cells = [*block("a", 2, 3), Cell("a", 5, 5, 0, copied), *block("b", 2, 2)]
    assert find(make_pack(tmp_path / "a.h5", cells)).empty


def test_patches_left_out_are_not_compared(tmp_path):
    copied = pixels_of("a", 0, 0)
    cells = [Cell("a", 0, 0), Cell("b", 0, 0, 0, copied), Cell("b", 0, 1)]
    pack = make_pack(tmp_path / "a.h5", cells)
    hashes = pixel_statistics(pack).table["hash"].to_numpy(np.uint64)
    assert len(find_duplicates(pack, hashes, np.arange(3))) == 2
    assert find_duplicates(pack, hashes, np.array([0, 2])).empty
    assert find_duplicates(pack, hashes, np.array([], int)).empty


def test_equal_hashes_of_different_pictures_are_no_duplicates(tmp_path):
    pack = make_pack(tmp_path / "a.h5", block("a", 3, 3) + block("b", 3, 3))
    found = find_duplicates(pack, np.zeros(18, np.uint64), np.arange(18))
    assert found.empty


def test_many_alike_take_no_time_and_stay_one_group(tmp_path):
    copied = pixels_of("a", 0, 0)
    cells = [
        Cell(patient, row, col, 0, copied)
        for patient in "ab"
        for row in range(20)
        for col in range(20)
    ]
    found = find(make_pack(tmp_path / "a.h5", cells))
    assert len(found) == 800
    assert found["group"].unique().tolist() == [1]


def test_it_is_said_when_not_every_pair_was_compared(monkeypatch, caplog):
    monkeypatch.setattr(duplicates, "_MAX_COMPARED", 3)
    near_pairs(np.arange(4, dtype=np.uint64))
    assert "not every pair" not in caplog.text
    near_pairs(np.arange(5, dtype=np.uint64))
    assert caplog.text.count("not every pair") == 1
