import numpy as np
import pandas as pd
import pytest

from tests.evaluations import evaluation_of, pack_of, patches
from tests.packs import Cell, flat, make_pack
from tests.trees import PATCH_PX
from wsi_idc.evaluation.gallery import (
    GALLERIES,
    MAX_PER_PATIENT,
    NUM_COLS,
    NUM_ROWS,
    surest_wrong,
)
from wsi_idc.explore.patch_figures import neighborhood

THREE = pd.concat(
    [
        patches("a", "000110", [0.9, 0.7, 0.95, 0.2, 0.6, 0.1]),
        patches("b", "0110", [0.9, 0.1, 0.3, 0.5]),
        patches("c", "01", [0.49, 0.5]),
    ],
    ignore_index=True,
)


def chosen(table: pd.DataFrame, label: int) -> list[tuple[str, int]]:
    found = surest_wrong(table, "probability", threshold=0.5, label=label)
    return list(zip(found["patient"], found["x"] // PATCH_PX, strict=True))


def test_false_positives_come_surest_first_and_few_of_a_patient():
    # 0.7 of a is its third; b's 0.5 is at the threshold, so called IDC; c's 0.49 is not.
    assert chosen(THREE, 0) == [("a", 2), ("a", 0), ("b", 0), ("b", 3)]


def test_false_negatives_come_smallest_first():
    assert chosen(THREE, 1) == [("b", 1), ("a", 3), ("b", 2)]


def test_a_gallery_has_an_end():
    num = NUM_ROWS * NUM_COLS
    table = pd.concat(
        [patches(f"p{at:02}", "000", [0.6 + at / 100] * 3) for at in range(num)], ignore_index=True
    )
    found = chosen(table, 0)
    assert len(found) == num
    # Equal ones in the order of the table: the first two of a patient.
    expected = [(f"p{at:02}", x) for at in range(num - 1, 0, -1) for x in range(2)]
    assert MAX_PER_PATIENT == 2
    assert found == expected[:num]


def test_what_is_smoothed_is_judged_smoothed():
    table = THREE.assign(probability_smoothed=1 - THREE["probability"])
    found = surest_wrong(table, "probability_smoothed", threshold=0.5, label=0)
    assert found["probability_smoothed"].tolist() == pytest.approx([0.9, 0.51, 0.5])


def test_a_patch_lies_amid_its_own_neighbours(tmp_path):
    red, green, blue, white = (flat(*rgb) for rgb in ((9, 0, 0), (0, 9, 0), (0, 0, 9), [255] * 3))
    cells = [
        Cell("a", 1, 1, 0, red),
        Cell("a", 0, 1, 0, green),
        Cell("a", 2, 2, 0, blue),
        Cell("a", 1, 3, 0, blue),  # two to the right
        Cell("b", 1, 0, 0, blue),  # another's
    ]
    pack = make_pack(tmp_path / "a.h5", cells)
    picture, num = neighborhood(pack, "a", PATCH_PX, PATCH_PX)
    rows = [[white, green, white], [white, red, white], [white, white, blue]]
    assert num == 2
    assert (picture == np.vstack([np.hstack(row) for row in rows])).all()


@pytest.mark.parametrize("name", GALLERIES)
def test_captions_say_whose_patch_it_is(name, tmp_path):
    pack = pack_of(tmp_path / "a.h5", THREE)
    figure = GALLERIES[name](evaluation_of(THREE), pack)
    (ax,) = figure.axes
    captions = [text.get_text() for text in ax.texts]
    if name == "false_positives":
        assert len(ax.images) == 4
        assert captions[0] == "a\nx 100, y 0\np 0.950, border 0"
        assert ax.get_title().startswith("False positives: the 4 surest of 5,")
    else:
        assert len(ax.images) == 3
        assert captions[2] == "b\nx 100, y 0\np 0.300, border 0"
        assert ax.get_title().startswith("False negatives: the 3 surest of 3,")
    # In a single row of patches few neighbours are there: the patch alone is shown.
    assert ax.images[0].get_array().shape == (PATCH_PX, PATCH_PX, 3)


def test_neighbours_are_shown_where_most_are_there(tmp_path):
    grid = pd.concat(
        [patches("a", "00000", [0.1, 0.1, 0.9 * (y == 2) + 0.05, 0.1, 0.1]).assign(y=y * PATCH_PX)
         for y in range(5)],
        ignore_index=True,
    )  # fmt: skip
    pack = pack_of(tmp_path / "a.h5", grid)
    (ax,) = GALLERIES["false_positives"](evaluation_of(grid), pack).axes
    assert [image.get_array().shape for image in ax.images] == [(3 * PATCH_PX, 3 * PATCH_PX, 3)]


def test_none_wrong_is_said(tmp_path):
    right = patches("a", "01", [0.1, 0.9])
    pack = pack_of(tmp_path / "a.h5", right)
    for draw in GALLERIES.values():
        figure = draw(evaluation_of(right), pack)
        assert not figure.axes
        assert figure.texts[0].get_text().endswith("none")
