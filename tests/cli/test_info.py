import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import RunCommand
from tests.packs import save_png
from tests.small_maps import edge_map, write_hand_map, write_two_slides, written
from wsi_idc.maps.cohort import write_cohort, write_cohort_h5
from wsi_idc.maps.map_writer import write_map
from wsi_idc.maps.patient_file import write_patient_file

ROW = {"area_mm2": 0.25, "idc_area_mm2": 0.125, "idc_fraction": 0.5}


@pytest.mark.parametrize("patches", ["text", np.nan, np.inf, None])
def test_info_of_a_forged_cohort_file_is_one_line(
    tmp_path: Path, command: RunCommand, patches: object
):
    path = tmp_path / "cohort.h5"
    row = {"patient": "P1", **ROW} | ({} if patches is None else {"patches": patches})
    write_cohort_h5(path, pd.DataFrame([row]), {"P1": tmp_path / "P1.h5"})
    assert "the columns of a cohort are missing" in command("info", path).error


def values_of(text: str) -> dict[str, str]:
    """Return names and values of a table; lines that continue a value are left out."""
    assert max(map(len, text.splitlines())) <= 80
    lines = (line for line in text.splitlines() if not line.startswith("  "))
    rows = dict(line.split("  ", 1) for line in lines)
    return {name: value.strip() for name, value in rows.items()}


def test_info_of_a_map_has_counts_with_fractions_and_the_role_of_the_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    model = {"role_of_patient": "test", "sha256": "0123456789abcdef" * 4, "notes": "word " * 40}
    written(tmp_path, label=np.array([0, 0, 1, -1], np.int8), model=model)
    shown = values_of(command("info", "P1.h5").out)
    assert shown["patient"] == "P1 (a test patient of the model)"
    assert shown["called idc"] == "2 of 4 patches (50.0%)"
    assert shown["labelled idc"] == "1 of 3 labelled patches (33.3%)"
    assert "sha256 0123456789ab," in shown["model"]
    assert "None" not in shown.values()
    assert {"called idc unsmoothed", "slide"}.isdisjoint(shown)
    record = json.loads(command("info", "P1.h5", "--json").out)
    assert (record["labelled_idc"], record["labelled_patches"]) == (1, 3)
    assert record["called_idc_unsmoothed"] is None
    assert record["model"]["sha256"] == model["sha256"]


def test_info_of_the_map_of_a_slide_has_no_labels_and_the_origin_of_the_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    write_map(tmp_path / "s.h5", replace(edge_map(), label=np.full(4, -1, np.int8)))
    shown = values_of(command("info", "s.h5").out)
    assert shown["labelled idc"] == "no labels"
    assert (shown["mpp"], shown["mpp source"]) == ("4", "model")
    assert shown["slide"] == "s.svs, 600 x 500 px at 0.5 um/px (given)"
    assert json.loads(command("info", "s.h5", "--json").out)["slide_mpp_source"] == "given"


def test_info_of_other_files_and_folders_names_a_file_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    monkeypatch.chdir(tmp_path)
    known = (
        "; wsi-idc info describes packs, checkpoints, runs, maps, cohort files, features and slides"
    )
    for name, what in (
        ("a.csv", "a table; a spreadsheet opens it"),
        ("a.geojson", "GeoJSON; QuPath opens it"),
        ("A.GEOJSON.GZ", "GeoJSON; QuPath opens it"),
        ("index.html", "a page; a browser opens it"),
        ("run.json", "a JSON file; a text editor opens it"),
        ("job.toml", "a job file; wsi-idc job runs it"),
    ):
        Path(name).touch()
        assert command("info", name).error == f"Error: {name} is {what}{known}"
    empty = f"Error: . is a folder without best.pt and without maps{known}"
    assert command("info", ".").error == empty
    written(tmp_path)
    assert command("info", ".").error == "Error: . is a folder of maps; give one map, such as P1.h5"
    assert write_cohort(tmp_path)
    assert values_of(command("info", ".").out)["kind"] == "cohort"
    hint = "Error: cohort.csv is a table; a spreadsheet opens it; for totals, give cohort.h5"
    assert command("info", "cohort.csv").error == hint


def test_info_of_a_patient_with_several_slides(tmp_path: Path, command: RunCommand):
    write_two_slides(tmp_path)
    path = tmp_path / "P1.h5"
    found = json.loads(command("info", path, "--json").out)
    shown = [found[name] for name in ("kind", "patient", "slides", "patches")]
    assert shown == ["patient", "P1", 2, 8]
    assert found["mean_uncertainty"] is None
    assert found["called_idc_of"] == pytest.approx({"a": 0.6, "b": 1 / 3})
    out = command("info", path).out
    assert "called idc of" in out
    assert "(fraction of all patches) a 60.0%, b 33.3%" in " ".join(out.split())
    assert json.loads(command("info", tmp_path / "P1/b.h5", "--json").out)["slide_name"] == "b"
    write_cohort(tmp_path)
    found = json.loads(command("info", tmp_path, "--json").out)
    assert found["called_idc_of"] == pytest.approx({"P1/a": 0.6, "P1/b": 1 / 3})
    with h5py.File(path, "r+") as file:
        del file["table/slide"]
        file["table"].attrs["columns"] = ["idc_fraction"]
    assert "the columns of the slides are missing" in command("info", path).error


def test_info_of_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand):
    monkeypatch.chdir(tmp_path)
    bits = {"blur": 1, "pen": 2}
    fields = {"flags": np.array([0, 1, 3, 0, 2], np.uint8), "flag_bits": bits}
    for slide in "ab":
        path = write_hand_map(tmp_path, slide_name=slide, exclude_flagged=slide == "b", **fields)
    write_patient_file(tmp_path / "P1.h5")
    name = path.relative_to(tmp_path)
    assert json.loads(command("info", name, "--json").out)["flagged"] == {"blur": 2, "pen": 2}
    text = "2 blur, 2 pen, left out of areas and regions"
    assert values_of(command("info", name).out)["flagged"] == text
    found = json.loads(command("info", "P1.h5", "--json").out)
    assert found["flagged"] | {"fold": 0, "glass": 0} == {
        "blur": 4,
        "pen": 4,
        "fold": 0,
        "glass": 0,
    }
    assert found["excluded_flags"] == "mixed"
    assert values_of(command("info", "P1.h5").out)["flagged"] == "4 blur, 4 pen"
    assert (
        "unknown"
        in values_of(command("info", written(tmp_path / "old").relative_to(tmp_path)).out)[
            "flagged"
        ]
    )


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
        "bounds": None,
        "mpp": None,
        "mpp_source": "the file does not state its microns per pixel",
        "levels": ["40 x 30"],
    }
    image.write_bytes(image.read_bytes()[:30])
    assert "scan.png: " in command("info", image).error
