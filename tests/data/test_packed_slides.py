"""Packs of patches that were cut from slides: positions on each slide, and damaged files."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.packs import INFO, PATCH_PX
from wsi_idc.core.errors import DataError
from wsi_idc.data.pack import Pack, write_pack
from wsi_idc.data.packed_slides import Overview, PackedSlide
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.geometry.grid import corners_of

# Patient, name of the slide, its mpp, and cell and label of each patch.
SLIDES = [
    ("7", "one", 0.3, [(0, 0, 1), (0, 2, 0), (30, 1, -1)]),
    ("7", "two", 0.499, [(0, 0, 0)]),
    ("8", "one", 4.0, [(1, 1, 1)]),
]


def slide(name: str, mpp: float) -> PackedSlide:
    bounds = Bounds(3, 4, 500, 600) if mpp == 0.3 else None
    return PackedSlide(name, f"/s/{name}.svs", mpp, "file", 30_000, 40_000, bounds, "ab" * 32)


def pixels_of(number: int) -> np.ndarray:
    return np.full((1, PATCH_PX, PATCH_PX, 3), number, np.uint8)


def write_slide_pack(path: Path) -> Path:
    slides, rows = [], []
    for patient, name, mpp, cells in SLIDES:
        slides.append(slide(name, mpp))
        sides = {"stride_px": PATCH_PX, "mpp": INFO.mpp, "slide_mpp": mpp}
        corners = corners_of(np.array(cells, np.int32)[:, :2], **sides)
        for (x, y), (*_, label) in zip(corners, cells, strict=True):
            size = {"height": PATCH_PX, "width": PATCH_PX}
            row = {"patient": patient, "slide": len(slides) - 1, "x": x, "y": y, "label": label}
            rows.append(row | size)
    overviews = [
        Overview(np.full((2, 3, 3), code, np.uint8), np.arange(6).reshape(2, 3) % 2 == 0)
        for code in range(len(slides))
    ]
    pixels = (pixels_of(number) for number in range(len(rows)))
    index = pd.DataFrame(rows)
    options = {"info": INFO, "provenance": "{}", "slides": slides, "overviews": overviews}
    write_pack(path, index, pixels, **options)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_slide_pack(tmp_path / "slides.h5")


def test_every_value(path):
    pack = Pack(path)
    assert (pack.patients, len(pack)) == (["7", "8"], 5)
    assert pack.slides == [slide("one", 0.3), slide("two", 0.499), slide("one", 4.0)]
    assert pack.index["slide"].tolist() == [0, 0, 0, 1, 2]
    # Two cells are 400 um, which are 1333.33 px of 0.3 um; 30 cells are 20,000 px.
    assert pack.index["x"].tolist() == [0, 1333, 667, 0, 50]
    assert pack.index["y"].tolist() == [0, 0, 20_000, 0, 50]
    assert pack.cells().tolist() == [[0, 0], [0, 2], [30, 1], [0, 0], [1, 1]]
    assert pack.index["label"].tolist() == [1, 0, -1, 0, 1]
    assert pack.patches[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert pack.paths() == [*3 * ["/s/one.svs"], "/s/two.svs", "/s/one.svs"]
    thumbnail, tissue = pack.overview(1)
    assert (thumbnail == 1).all()
    assert tissue.tolist() == [[True, False, True], [False, True, False]]
    assert h5py.File(path).attrs["format_version"] == 2


def test_rows_of_a_slide(path):
    pack = Pack(path)
    assert pack.rows_of("7").tolist() == [0, 1, 2, 3]
    assert pack.rows_of("7", "two").tolist() == [3]
    assert [slide.name for slide in pack.slides_of("7")] == ["one", "two"]
    with pytest.raises(DataError, match="patient 8 has no slide 'two'; the slides are one"):
        pack.rows_of("8", "two")


def test_a_pack_of_a_tree_has_one_grid_per_patient(pack):
    assert pack.slides == []
    assert (pack.index["slide"] == pack.index["patient"]).all()
    assert pack.slides_of(pack.patients[0]) == []


DAMAGE = {
    "off the grid": (lambda f: f["x"].__setitem__(1, 1334), "not on a grid"),
    "unsorted": (lambda f: f["slide"].__setitem__(0, 1), "/slide must start at 0"),
    "two patients": (lambda f: f["slide"].__setitem__(4, 1), "a slide has several patients"),
    "fewer slides": (lambda f: f.__delitem__("slides/mpp"), "/slides/mpp is not a dataset"),
    "mpp": (lambda f: f["slides/mpp"].__setitem__(0, 0.0), "/slides/mpp has values outside"),
    "same name": (lambda f: f["slides/name"].__setitem__(1, "one"), "have the same name"),
    "unsafe": (lambda f: f["slides/name"].__setitem__(1, "../x"), "cannot be a"),
    "same place": (lambda f: f["x"].__setitem__(1, 0), "have the same position"),
    "size": (lambda f: f["slides/width"].__setitem__(0, 0), "/slides/width has values outside"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged(path, name):
    damage, message = DAMAGE[name]
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=rf"not a usable pack \(.*{message}.*\); make it again"):
        Pack(path)


def test_a_damaged_thumbnail_is_one_line(path):
    with h5py.File(path, "r+") as file:
        del file["slides/thumbnail/0"]
        file["slides/thumbnail/0"] = np.zeros((2, 4, 3), np.uint8)
    with pytest.raises(DataError, match=r"a part cannot be read \(/slides/thumbnail/0 is of shape"):
        Pack(path).overview(0)
