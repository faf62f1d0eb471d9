import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.packs import Cell, block, flat, make_pack, pixels_of
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.data.pack import Pack
from wsi_idc.explore.explore import explore
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

pytestmark = pytest.mark.usefixtures("low_resolution")
SEEDED = ("samples", "augmentation")
WORLDS = {
    "one small patch": [Cell("a", 0, 0, 1, pixels_of("a", 0, 0, height=1, width=1))],
    "one class": block("a", 2, 2, 1) + block("b", 2, 2, 1),
    "all labels unknown": block("a", 3, 3, -1) + block("b", 1, 2, -1),
    "no tissue": [Cell("a", 0, 0, 0, flat(255, 255, 255)), Cell("b", 0, 0, 1, flat(9, 9, 9))],
    "far apart": [Cell("a", 0, 0, 1), Cell("a", *2 * [MAX_CELLS_PER_SIDE - 1], 0)],
}


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_complete(summary: dict[str, Any], files: dict[str, bytes]) -> None:
    """Assert that the summary names all files and is JSON."""
    assert set(files) == {"summary.json", "index.html", *summary["tables"], *summary["figures"]}
    assert json.loads(files["summary.json"]) == summary
    json.dumps(summary, allow_nan=False)


def test_a_cohort_gives_the_same_bytes_again(cohort: Pack, tmp_path: Path):
    summary = explore(cohort, tmp_path)
    files = read_files(tmp_path)
    assert_complete(summary, files)
    assert summary["patches"] == len(cohort)
    patients = pd.read_csv(tmp_path / "patients.csv", dtype={"patient": str})
    assert patients["patient"].tolist() == cohort.patients
    assert patients["patches"].sum() == len(cohort)
    for name in summary["figures"]:
        if name.endswith(".png"):
            with Image.open(tmp_path / name) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 1
        else:
            assert files[name].rstrip().endswith(b"</svg>")
    explore(cohort, tmp_path, seed=1)
    with_seed_1 = read_files(tmp_path)
    changed = {name for name in files if files[name] != with_seed_1[name]}
    seeded = {f"figures/{name}.{kind}" for name in SEEDED for kind in ("png", "svg")}
    assert changed == {*seeded, "index.html", "summary.json"}


@pytest.mark.parametrize("world", WORLDS)
def test_a_degenerate_pack_has_all_tables_and_figures(world: str, tmp_path: Path):
    summary = explore(make_pack(tmp_path / "a.h5", WORLDS[world]), tmp_path / "out")
    assert_complete(summary, read_files(tmp_path / "out"))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "is a file; give a folder as --out"),
        ("patients.csv", r"patients\.csv exists and was not written"),
    ],
)
def test_other_files_are_not_replaced(file: str, message: str, cohort: Pack, tmp_path: Path):
    path = tmp_path / "out" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("other")
    with pytest.raises(WsiIdcError, match=message):
        explore(cohort, tmp_path / "out")
    assert path.read_text() == "other"
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1


def test_the_page_has_all_figures_and_shows_names_as_text(tmp_path: Path):
    names = ("a$b$_{", "<b>&患者", "=1+1", "a")
    similar = [Cell(name, 0, 0, 0, pixels_of("a", 0, 0)) for name in names]
    summary = explore(make_pack(tmp_path / "a.h5", similar), tmp_path / "out")
    assert_complete(summary, read_files(tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure") == len(summary["figures"]) / 2
    assert page.count("data:image/svg+xml;base64,") == len(summary["figures"]) / 2
    assert "<dt>data</dt><dd>a.h5, fingerprint " in page
    assert '<td class="text name"><bdi>non-IDC</bdi></td>' in page
    assert "<b>&患者" not in page
    assert "&lt;b&gt;&amp;患者" in page
    assert "default-src 'none'" in page.replace("&#39;", "'")
