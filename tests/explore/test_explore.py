import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.packs import Cell, block, flat, make_pack
from tests.trees import pixels_of
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.explore.explore import explore
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

SEEDED = ("samples", "augmentation")
WORLDS = {
    "one patch": [Cell("a", 0, 0, 1)],
    "one small patch": [Cell("a", 0, 0, 0, pixels_of("a", 0, 0, height=1, width=1))],
    "one class": block("a", 2, 2, 1) + block("b", 2, 2, 1),
    "all labels unknown": block("a", 3, 3, -1) + block("b", 1, 2, -1),
    "no tissue": [Cell("a", 0, 0, 0, flat(255, 255, 255)), Cell("b", 0, 0, 1, flat(9, 9, 9))],
    "far apart": [Cell("a", 0, 0, 1), Cell("a", *2 * [MAX_CELLS_PER_SIDE - 1], 0)],
    "odd names": block("a$b$_{", 2, 2, 1) + block("<b>&患者", 2, 2) + block("=1+1", 1, 1),
    "alike": [Cell(patient, 0, 0, 0, pixels_of("a", 0, 0)) for patient in "abcdef"],
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_written_is_what_the_summary_names(cohort, tmp_path):
    summary = explore(cohort, tmp_path / "out")
    written = files(tmp_path / "out")
    assert set(written) == {"summary.json", *summary["tables"], *summary["figures"]}
    assert json.loads(written["summary.json"]) == summary
    assert summary["patches"] == len(cohort)
    patients = pd.read_csv(tmp_path / "out" / "patients.csv", dtype={"patient": str})
    assert patients["patient"].tolist() == cohort.patients
    assert patients["patches"].sum() == len(cohort)
    for name in summary["figures"]:
        if name.endswith(".png"):
            with Image.open(tmp_path / "out" / name) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 1
        else:
            assert written[name].rstrip().endswith(b"</svg>")


def test_the_same_pack_gives_the_same_bytes(cohort, tmp_path):
    explore(cohort, tmp_path / "a")
    explore(cohort, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    explore(cohort, tmp_path / "b", seed=1)
    before, after = files(tmp_path / "a"), files(tmp_path / "b")
    changed = {name for name in before if before[name] != after[name]}
    seeded = {f"figures/{name}.{kind}" for name in SEEDED for kind in ("png", "svg")}
    assert changed == {*seeded, "summary.json"}


@pytest.mark.parametrize("world", WORLDS)
def test_degenerate_packs(world, tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)  # it is not looked at
    pack = make_pack(tmp_path / "a.h5", WORLDS[world])
    summary = explore(pack, tmp_path / "out")
    assert set(files(tmp_path / "out")) == {
        "summary.json",
        *summary["tables"],
        *summary["figures"],
    }
    json.dumps(summary, allow_nan=False)


def test_a_file_in_the_way(cohort, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(WsiIdcError, match="is a file; give a folder as --out"):
        explore(cohort, tmp_path / "out")


def test_what_lies_in_the_folder_is_not_written_over(cohort, tmp_path):
    mine = tmp_path / "patients.csv"
    mine.write_text("of an evaluation")
    with pytest.raises(WsiIdcError, match=r"patients\.csv exists and was not written by this"):
        explore(cohort, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["patients.csv"]
    assert mine.read_text() == "of an evaluation"
