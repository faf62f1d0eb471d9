from pathlib import Path

import pandas as pd
import pytest

from tests.evaluations import evaluation_of, pack_of, patches
from tests.packs import PATCH_PX
from wsi_idc.evaluation.gallery import GALLERIES, MAX_PER_PATIENT, NUM_COLS, NUM_ROWS, surest_wrong

THREE = patches(
    ("a", "000110", [0.9, 0.7, 0.95, 0.2, 0.6, 0.1]),
    ("b", "0110", [0.9, 0.1, 0.3, 0.5]),
    ("c", "01", [0.49, 0.5]),
)


def select(table: pd.DataFrame, label: int) -> list[tuple[str, int]]:
    chosen = surest_wrong(table, "probability", threshold=0.5, label=label)
    return list(zip(chosen["patient"], chosen["x"] // PATCH_PX, strict=True))


def test_the_surest_come_first_and_few_of_each_patient():
    # a's third is left out; b's 0.5 is at the threshold and called IDC, c's 0.49 is not.
    assert select(THREE, 0) == [("a", 2), ("a", 0), ("b", 0), ("b", 3)]
    assert select(THREE, 1) == [("b", 1), ("a", 3), ("b", 2)]
    smoothed = THREE.assign(probability_smoothed=1 - THREE["probability"])
    chosen = surest_wrong(smoothed, "probability_smoothed", threshold=0.5, label=0)
    assert chosen["probability_smoothed"].tolist() == pytest.approx([0.9, 0.51, 0.5])


def test_a_gallery_is_limited():
    num = NUM_ROWS * NUM_COLS
    table = patches(*((f"p{index:02}", "000", [0.6 + index / 100] * 3) for index in range(num)))
    # Equal probabilities stay in the order of the table.
    expected = [
        (f"p{index:02}", x) for index in range(num - 1, 0, -1) for x in range(MAX_PER_PATIENT)
    ]
    assert select(table, 0) == expected[:num]


@pytest.mark.parametrize(
    ("name", "caption", "title"),
    [
        (
            "false_positives",
            "a\nx 100, y 0\np 0.950",
            "False positives: the 4 most confident of 5,",
        ),
        ("false_negatives", "b\nx 50, y 0\np 0.100", "False negatives: the 3 most confident of 3,"),
    ],
)
def test_captions_name_patient_and_place(name: str, caption: str, title: str, tmp_path: Path):
    (ax,) = GALLERIES[name](evaluation_of(THREE), pack_of(tmp_path / "a.h5", THREE)).axes
    assert ax.texts[0].get_text() == f"{caption}, border 0"
    assert ax.get_title().startswith(title)
    # In a single row of patches few neighbors exist, so only the patch is shown.
    shapes = [image.get_array().shape for image in ax.images]
    assert shapes == len(ax.texts) * [(PATCH_PX, PATCH_PX, 3)]


def test_neighbors_are_shown_if_most_exist(tmp_path: Path):
    grid = patches(("a", "0" * 25, [0.1] * 12 + [0.95] + [0.1] * 12))
    grid = grid.assign(x=grid.index % 5 * PATCH_PX, y=grid.index // 5 * PATCH_PX)
    pack = pack_of(tmp_path / "a.h5", grid)
    (ax,) = GALLERIES["false_positives"](evaluation_of(grid), pack).axes
    assert [image.get_array().shape for image in ax.images] == [(3 * PATCH_PX, 3 * PATCH_PX, 3)]


def test_a_gallery_without_errors_says_so(tmp_path: Path):
    correct = patches(("a", "01", [0.1, 0.9]))
    pack = pack_of(tmp_path / "a.h5", correct)
    for draw in GALLERIES.values():
        figure = draw(evaluation_of(correct), pack)
        assert not figure.axes
        assert figure.texts[0].get_text().endswith("none")
