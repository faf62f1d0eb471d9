import json
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.cli.test_main import Said, program
from tests.trees import make_tree
from wsi_idc.core.files import temporary_path
from wsi_idc.data.open_data import open_data
from wsi_idc.data.pack import Pack
from wsi_idc.geometry.grid import mosaic, shape_of
from wsi_idc.maps.map_reader import map_paths, read_map
from wsi_idc.maps.map_writer import write_map
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.training.runs import Run


@pytest.fixture
def work(
    tmp_path: Path, cohort: Pack, trained: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with the synthetic pack in data/, a finished run and a slide."""
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data")
    save_checkpoint(tmp_path / "runs" / "a" / "best.pt", trained)
    Run(tmp_path / "runs" / "a").write("finished", {}, {})
    rows = cohort.rows_of(cohort.patients[0])
    cells = cohort.cells()[rows]
    image = mosaic(cohort.patches[rows], cells, shape=shape_of(cells), fill=255)
    tifffile.imwrite(
        tmp_path / "s.tif",
        image,
        tile=(64, 64),
        photometric="rgb",
        resolution=(2500, 2500),
        resolutionunit="CENTIMETER",
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(process: "subprocess.Popen[str]") -> int:
    """Wait for a process and return its exit code."""
    process.communicate()
    return process.returncode


def probabilities(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in map_paths(folder):
        with h5py.File(path) as file:
            assert file.attrs["complete"] == 1
            found[path.stem] = file["probability"][:]
    return found


def test_slides_are_mapped_and_bad_ones_listed(work: Path, capsys: pytest.CaptureFixture[str]):
    (work / "bad.svs").touch()
    said = Said(capsys, "map", "--slide", "bad.svs", "s.tif", "--min-tissue", 0)
    assert said.code == 1
    assert "maps/s.h5" in said.out
    assert "1 of 2 patients have no map: bad" in said.error
    assert "is empty" in said.err
    (work / "list.csv").write_text("slide,patient,mpp\ns.tif,P7,4\n")
    said = Said(capsys, "map", "--manifest", "list.csv", "--no-cam", "--no-image")
    assert said.code == 0, said.err
    found = json.loads(Said(capsys, "info", "maps/P7.h5", "--json").out)
    assert (found["source"], found["cam"]) == ("slide", "none")
    assert found["slide"].startswith("s.tif, ")
    found = json.loads(Said(capsys, "info", "s.tif", "--json").out)
    assert (found["kind"], found["mpp"], found["mpp_source"]) == ("slide", 4.0, "file")


def test_shards_make_the_whole(work: Path, cohort: Pack, capsys: pytest.CaptureFixture[str]):
    for index in (1, 2, 3):
        assert Said(capsys, "map", "--all", "--shard", f"{index}/3").code == 0
    assert [path.stem for path in sorted((work / "maps").iterdir())] == cohort.patients
    assert "I/N with I from 1 to N" in Said(capsys, "map", "--all", "--shard", "0/3").error


def test_a_dry_run_writes_nothing(work: Path, cohort: Pack, capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, "map", "--all", "--dry-run")
    assert said.code == 0, said.err
    assert f"6 of 6 to do: {len(cohort)} patches" in said.out
    (work / "ids.txt").write_text("S0001\nS0002\n")
    plan = json.loads(Said(capsys, "map", "--patients-file", "ids.txt", "--dry-run", "--json").out)
    assert [one["patient"] for one in plan] == ["S0001", "S0002"]
    assert not (work / "maps").exists()
    said = Said(capsys, "map", "--slide", "s.tif", "none.svs", "--dry-run")
    assert said.code == 1
    assert "none: none.svs: no such file" in said.out
    assert "1 of 2 to do" in said.out
    assert said.error.startswith("Error: 1 of 2 patients would have no map: none; the reasons")
    said = Said(capsys, "map", "--slide", "none.svs", "--dry-run", "--json")
    assert (said.code, len(json.loads(said.out))) == (1, 1)


def test_the_cohort_is_summed_up(work: Path, cohort: Pack, capsys: pytest.CaptureFixture[str]):
    said = Said(capsys, "map", "--all", "--tta", "--no-cam")
    assert "maps/cohort.csv" in said.out
    table = pd.read_csv("maps/cohort.csv", dtype={"patient": str})
    assert table["patient"].tolist() == cohort.patients
    assert table["patches"].sum() == len(cohort)
    assert (table["mean_uncertainty"] > 0).all()
    with h5py.File("maps/cohort.h5") as file:
        assert file[f"maps/{cohort.patients[2]}/probability"].shape[0] == table["patches"][2]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["map"], 2, "give --patient P"),
        (["map", "--all", "--slide", "s.tif"], 2, "give --patient P"),
        (["map", "--all", "s.tif"], 2, "give --patient P"),
        (["map", "--all", "--stride", "25"], 2, "--stride is for slides"),
        (["map", "--all", "--min-tissue", "0.9"], 2, "--min-tissue is for slides"),
        (["map", "--slide", "s.tif", "--data", "data"], 2, "--data is for patients of a pack"),
        (["map", "--all", "--no-cam", "--cam-class", "non-idc"], 2, "--cam-class says nothing"),
        (["map", "--slide", "s.tif", "--min-tissue", "nan"], 2, "is not a number"),
        (["map", "--slide", "s.tif", "--cam-layer", "x"], 1, "has no layer 'x'"),
        (["map", "--all", "--cam-layer", "classifier"], 1, "gives no feature map"),
        (["map", "--slide", "s.tif", "--stride", "51"], 1, "s.tif"),
        (["map", "--slide", "s.tif", "--mask", "none.png"], 1, "none.png"),
        (["map", "--manifest", "none.csv"], 1, "none.csv"),
        (["map", "--patients-file", "none.txt"], 1, "none.txt"),
    ],
)
def test_bad_usage_is_one_line_and_makes_no_map(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, error: str
):
    said = Said(capsys, *arguments)
    assert said.code == code
    assert error in said.err
    assert "Traceback" not in said.err
    assert not list(work.glob("maps/*.h5"))


def test_an_option_at_its_default_asks_for_nothing(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    defaults = ["--min-tissue", 0.1, "--no-cam", "--cam-method", "gradcam", "--cam-class", "idc"]
    said = Said(capsys, "map", "--patient", "S0001", *defaults)
    assert said.code == 0, said.err
    monkeypatch.setenv("WSI_IDC_DATA", str(work / "data"))
    said = Said(capsys, "map", "--slide", "s.tif", "--min-tissue", 0)
    assert said.code == 0, said.err


def test_a_table_that_cannot_be_written_is_said_after_the_maps(
    work: Path, cohort: Pack, capsys: pytest.CaptureFixture[str]
):
    maps = work / "maps"
    assert Said(capsys, "map", "--patient", "S0001", "--no-cam").code == 0
    write_map(maps / "cohort.h5", replace(read_map(maps / "S0001.h5"), patient="cohort"))
    said = Said(capsys, "map", "--all", "--no-cam")
    assert said.code == 1
    assert [line for line in said.out.splitlines() if line.startswith("maps/S0002.h5  ")]
    assert "1 kept" in said.out
    assert "no table of the maps: maps/cohort.h5 is the map of a patient" in said.err
    assert said.error == "Error: the maps are made, but no table of them; the reason is above"
    assert read_map(maps / "cohort.h5").patient == "cohort"


@pytest.mark.slow
def test_kills_leave_whole_maps_and_the_same_numbers(work: Path, cohort: Pack):
    whole = program("map", "--all", "--out", "undisturbed", "--batch-size", 16)
    assert ended(whole) == 0
    rng = random.Random(3)
    for _ in range(4):
        process = program("map", "--all", "--out", "killed", "--batch-size", 16)
        until = time.monotonic() + 60
        wanted = rng.randint(0, 5)
        while len(list(work.glob("killed/*.h5"))) < wanted and time.monotonic() < until:
            if process.poll() is not None:
                break
            time.sleep(0.002)
        time.sleep(rng.random() / 50)
        process.send_signal(signal.SIGKILL)
        ended(process)
        probabilities(work / "killed")  # none is half there
    assert ended(program("map", "--all", "--out", "killed", "--batch-size", 16)) == 0
    expected, found = (probabilities(work / name) for name in ("undisturbed", "killed"))
    assert list(found) == cohort.patients
    for patient, values in expected.items():
        np.testing.assert_array_equal(found[patient], values)
    assert not list(work.glob("killed/.*"))


@pytest.mark.slow
def test_a_signal_ends_the_packing_of_a_tree(work: Path):
    pack = open_data(make_tree(work / "tree")).path
    pack.unlink()
    with temporary_path(pack):
        process = program("map", "--all", "--data", "tree")
        assert any("waiting for another process that packs" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 75
    assert "Stopped" in said


@pytest.mark.slow
def test_two_at_once_in_one_folder_do_no_harm(work: Path, cohort: Pack):
    both = [program("map", "--all", "--out", "both") for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert ended(program("map", "--all", "--out", "alone")) == 0
    expected, found = (probabilities(work / name) for name in ("alone", "both"))
    assert list(found) == cohort.patients
    for patient, values in expected.items():
        np.testing.assert_array_equal(found[patient], values)
    assert not list(work.glob("both/.*"))
