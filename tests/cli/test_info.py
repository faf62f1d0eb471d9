import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import RunCommand
from tests.packs import save_png
from tests.small_maps import written
from wsi_idc.maps.cohort import write_cohort_h5

ROW = {"area_mm2": 0.25, "idc_area_mm2": 0.125, "idc_fraction": 0.5}


@pytest.mark.parametrize("patches", ["text", np.nan, np.inf, None])
def test_info_of_a_forged_cohort_file_is_one_line(
    tmp_path: Path, command: RunCommand, patches: object
):
    path = tmp_path / "cohort.h5"
    row = {"patient": "P1", **ROW} | ({} if patches is None else {"patches": patches})
    write_cohort_h5(path, pd.DataFrame([row]), {"P1": tmp_path / "P1.h5"})
    assert "the columns of a cohort are missing" in command("info", path).error


def test_info_of_a_map_has_counts_with_fractions_and_the_role_of_the_patient(
    tmp_path: Path, command: RunCommand
):
    path = written(tmp_path, label=np.array([0, 0, 1, -1], np.int8))
    lines = dict(line.split("  ", 1) for line in command("info", path).out.splitlines())
    shown = {name: value.strip() for name, value in lines.items()}
    assert shown["patient"] == "P1 (role in the training of the model: test)"
    assert shown["called idc"] == "2 of 4 patches (50.0%)"
    assert shown["labelled idc"] == "1 of 4 patches (25.0%)"
    assert shown["called idc smoothed"] == "None"


def test_info_of_a_cohort_file_has_totals(tmp_path: Path, command: RunCommand):
    table = pd.DataFrame([{"patient": name, "patches": 6, **ROW} for name in ("P1", "P2")])
    path = tmp_path / "cohort.h5"
    write_cohort_h5(path, table, {name: tmp_path / f"{name}.h5" for name in ("P1", "P2")})
    assert json.loads(command("info", path, "--json").out) == {
        "kind": "cohort",
        "file": str(path),
        "maps": 2,
        "patches": 12,
        "area_mm2": 0.5,
        "idc_area_mm2": 0.25,
        "called_idc_of": {"P1": 0.5, "P2": 0.5},
    }


def test_info_of_a_damaged_pack_is_an_error(work: Path, command: RunCommand):
    pack = work / "data" / "cohort.h5"
    for size in (-1, 3000):
        pack.write_bytes(pack.read_bytes()[:size])
        assert f"{pack}: HDF5 cannot read this file (" in command("info", pack).error
    with h5py.File(pack, "w") as file:
        file.attrs["format"] = "another"
    assert f"{pack}: neither a pack, a checkpoint" in command("info", pack).error


def test_info_of_an_image_without_resolution(tmp_path: Path, command: RunCommand):
    image = save_png(tmp_path / "scan.png", np.zeros((30, 40, 3), np.uint8))
    record = json.loads(command("info", image, "--json").out)
    assert len(record.pop("fingerprint")) == 64
    assert record == {
        "kind": "slide",
        "file": str(image),
        "width": 40,
        "height": 30,
        "mpp": None,
        "mpp_source": "the file does not state its microns per pixel",
        "levels": ["40 x 30"],
    }
    image.write_bytes(image.read_bytes()[:30])
    assert "scan.png: " in command("info", image).error
