from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.packs import Cell, block, flat, make_pack
from wsi_idc.data.pack import Pack
from wsi_idc.explore import quality
from wsi_idc.explore.pixel_statistics import pixel_statistics
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

GLASS = flat(240, 240, 240)


def hint_table(pack: Pack) -> pd.DataFrame:
    return quality.quality_flags(pack, pixel_statistics(pack).table, quality.neighbor_index(pack))


def find_hints(tmp_path: Path, cells: list[Cell], kind: str) -> list[int]:
    """Return the column of each patch with a hint."""
    table = hint_table(make_pack(tmp_path / "a.h5", cells))
    return (table.loc[table["kind"] == kind, "x"] // 50).tolist()


def plain_neighbors(pack: Pack) -> list[list[int]]:
    """Find the neighbors by looking each cell up in a dictionary."""
    index = pack.index
    keys = list(zip(index["patient"], index["y"] // 50, index["x"] // 50, strict=True))
    place = {key: row for row, key in enumerate(keys)}
    offsets = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
    return [[place.get((p, y + r, x + c), -1) for r, c in offsets] for p, y, x in keys]


def test_neighbors_in_a_cohort(cohort: Pack):
    neighbors = quality.neighbor_index(cohort)
    assert neighbors.tolist() == plain_neighbors(cohort)
    assert (neighbors >= 0).all(axis=1).any()


def test_no_neighbor_is_of_another_patient_or_across_the_edge(tmp_path: Path):
    last = MAX_CELLS_PER_SIDE - 1
    corners = [(0, 0), (0, last), (1, 0), (1, last), (last, 0), (last, last)]
    cells = [Cell(patient, row, col) for patient in "abc" for row, col in corners]
    pack = make_pack(tmp_path / "a.h5", cells)
    assert quality.neighbor_index(pack).tolist() == plain_neighbors(pack)


def relabelled(cells: list[Cell], **labels: int) -> list[Cell]:
    for cell in cells:
        cell.label = labels.get(f"r{cell.row}c{cell.col}", cell.label)
    return cells


@pytest.mark.parametrize("label", [0, 1])
def test_a_label_unlike_all_8_neighbors_is_a_hint(tmp_path: Path, label: int):
    cells = relabelled(block("a", 4, 5, 1 - label), r1c2=label) + block("b", 3, 3, label)
    pack = make_pack(tmp_path / "a.h5", cells)
    (row,) = hint_table(pack).to_dict("records")
    assert (row["kind"], row["patient"], row["x"], row["y"]) == (quality.LABEL, "a", 100, 50)
    assert (row["label"], row["value"]) == (label, 8)
    assert row["path"] == f"a_idx5_x101_y51_class{label}.png"
    assert pack.paths()[row["row"]] == row["path"]


def test_an_incomplete_mixed_or_unknown_neighborhood_is_no_hint(tmp_path: Path):
    two = relabelled(block("a", 4, 5), r1c2=1, r1c3=1)
    unknown = relabelled(block("b", 3, 3), r1c1=1, r0c0=-1)
    itself = relabelled(block("c", 3, 3), r1c1=-1)
    missing = [cell for cell in block("d", 3, 3) if (cell.row, cell.col) != (2, 2)]
    missing = relabelled(missing, r1c1=1)
    assert find_hints(tmp_path, two + unknown + itself + missing, quality.LABEL) == []


def test_a_patch_without_tissue_is_a_hint(tmp_path: Path):
    little, enough = GLASS.copy(), GLASS.copy()
    little[0, :49] = (160, 60, 140)  # 49 of 2500 px are below 2 %
    enough[0] = (160, 60, 140)
    cells = [Cell("a", 0, 0, 0, GLASS), Cell("a", 0, 1, 0, little), Cell("a", 0, 2, 0, enough)]
    cells += [Cell("a", 0, 3, 0, flat(30, 30, 30)), Cell("a", 0, 4)]
    small = np.full((4, 10, 3), (160, 60, 140), np.uint8)  # all tissue, but for its padding
    cells += [Cell("a", 0, 5, 0, small)]
    assert find_hints(tmp_path, cells, quality.BLANK) == [0, 1, 3]


def test_a_dark_band_is_a_hint(tmp_path: Path):
    rows, cols, few, short, ink = (GLASS.copy() for _ in range(5))
    rows[40:43] = 120
    cols[:, 10:13] = 120
    few[40:42] = 120
    short[40:43, :40] = 120
    ink[:, :] = (20, 20, 90)  # dark, but colored
    images = [GLASS, rows, cols, few, short, ink, rows[:41, :20]]
    images += [np.full((30, 50, 3), 120, np.uint8)]  # a small patch, gray all over
    cells = [Cell("a", 0, col, 0, image) for col, image in enumerate(images)]
    assert find_hints(tmp_path, cells, quality.DARK_BAND) == [1, 2, 7]


def stained(patient: str, color: tuple[int, int, int], count: int = 10) -> list[Cell]:
    """Return patches of one color."""
    return [Cell(patient, 0, col, 0, flat(*color)) for col in range(count)]


def test_a_stain_outlier_among_patients(tmp_path: Path):
    colors = {f"p{i}": (180 + i, 110 + 2 * i, 170 + i) for i in range(9)}
    cells = [cell for patient, color in colors.items() for cell in stained(patient, color)]
    cells += stained("odd", (90, 40, 160)) + stained("few", (90, 40, 160), count=9)
    cells += [Cell("none", 0, 0, 0, GLASS)]
    pack = make_pack(tmp_path / "a.h5", cells)
    table = quality.stain_table(pack, pixel_statistics(pack).table).set_axis(pack.patients)
    assert table.index[table["stain_outlier"]].tolist() == ["odd"]
    density = -np.log10(np.array((90, 40, 160)) / 255)
    odd = table.loc["odd"]
    assert odd["stain_strength"] == pytest.approx(density.mean(), abs=5e-4)
    assert odd["red_share"] == pytest.approx(density[0] / density.sum(), abs=1e-3)
    assert table.loc["few", "stain_strength"] == odd["stain_strength"]
    assert np.isnan(table.loc["few", "stain_strength_z"])
    assert np.isnan(table.loc["none", "stain_strength"])


def test_patients_stained_alike_are_no_outliers(tmp_path: Path):
    cells = [cell for patient in "abcdef" for cell in stained(patient, (180, 110, 170))]
    pack = make_pack(tmp_path / "a.h5", cells)
    table = quality.stain_table(pack, pixel_statistics(pack).table)
    assert not table["stain_outlier"].any()
    assert (table["stain_strength_z"] == 0).all()


def test_modified_z_is_the_published_one():
    values = np.array([1.0, 2.0, 4.0, 7.0, 100.0, np.nan])
    scores = quality.modified_z(values)
    # Median 4, absolute deviations 3 2 0 3 96, their median 3.
    np.testing.assert_allclose(scores[:5], 0.6745 * (values[:5] - 4) / 3, rtol=1e-4)
    assert np.isnan(scores[5])
    assert quality.modified_z(np.array([5.0, 5.0, 5.0, 9.0])).tolist() == [0, 0, 0, 0]
    assert np.isnan(quality.modified_z(np.array([np.nan, np.nan]))).all()


def test_random_patches_have_no_hint(tmp_path: Path):
    assert hint_table(make_pack(tmp_path / "a.h5", block("a", 3, 3) + block("b", 3, 3, 1))).empty
