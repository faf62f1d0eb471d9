import json
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.cli.commands import Command, RunCommand
from tests.packs import make_tree
from wsi_idc.cli.map import _report_lines
from wsi_idc.core.files import temporary_path
from wsi_idc.data.open_data import open_data
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.cohort import read_cohort
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.map_reader import map_paths, read_map
from wsi_idc.maps.map_writer import MapReport, write_map
from wsi_idc.models.checkpoint import Checkpoint, save_checkpoint
from wsi_idc.models.smoothing import NeighborModel
from wsi_idc.runtime.device import select_device
from wsi_idc.training.runs import set_default


@pytest.fixture
def work(work: Path, slide: Path, trained: Checkpoint) -> Path:
    """Add a finished run to the working folder with a slide."""
    save_checkpoint(work / "runs" / "a" / "best.pt", trained)
    set_default(work / "runs", work / "runs" / "a")
    return work


def probabilities(folder: Path) -> dict[str, np.ndarray]:
    """Return the probabilities of each map by patient; every map must be complete."""
    arrays = {}
    for path in map_paths(folder):
        with h5py.File(path) as file:
            assert file.attrs["complete"] == 1
            arrays[path.stem] = file["probability"][:]
    return arrays


def test_slides_are_mapped_and_bad_ones_listed(work: Path, command: RunCommand):
    (work / "bad.svs").touch()
    result = command("map", "--slide", "bad.svs", "s.tif", "--min-tissue", 0)
    assert result.code == 1
    assert "maps/s.h5" in result.out
    assert "1 of 2 maps were not made: bad" in result.error
    assert [line for line in result.err.splitlines() if "is empty" in line] == [
        "no map of bad: bad.svs: is empty; copy the slide again"
    ]
    (work / "list.csv").write_text("slide,patient,mpp\ns.tif,P7,4\n")
    result = command("map", "--manifest", "list.csv", "--no-cam", "--no-image")
    assert result.code == 0, result.err
    found = json.loads(command("info", "maps/P7.h5", "--json").out)
    assert (found["source"], found["cam"]) == ("slide", "none")
    assert (found["mpp"], found["mpp_source"]) == (4.0, "model")
    assert found["slide"].startswith("s.tif, ")
    (work / "list.csv").write_text("slide,patient,mpp\ns.tif,P8,4\n")
    result = command("map", "--manifest", "list.csv", "--no-cam", "--no-image")
    assert "kept 2 files of an earlier run in which slides had other patients" in result.err
    assert "remove the outdated files: maps/P7.h5, maps/s.h5" in result.err
    found = json.loads(command("info", "s.tif", "--json").out)
    assert (found["kind"], found["mpp"], found["mpp_source"]) == ("slide", 4.0, "file")


def test_shards_make_all_maps(work: Path, cohort: Pack, command: RunCommand):
    for index in (1, 2, 3):
        assert command("map", "--all", "--shard", f"{index}/3").code == 0
    assert [path.stem for path in sorted((work / "maps").iterdir())] == cohort.patients


def test_a_dry_run_writes_nothing(work: Path, cohort: Pack, command: RunCommand):
    result = command("map", "--all", "--dry-run")
    assert result.code == 0, result.err
    assert f"6 of 6 to do: {len(cohort)} patches" in result.out
    (work / "ids.txt").write_text("S0001\nS0002\n")
    plan = json.loads(command("map", "--patients-file", "ids.txt", "--dry-run", "--json").out)
    assert [one["patient"] for one in plan] == ["S0001", "S0002"]
    assert not (work / "maps").exists()
    result = command("map", "--slide", "s.tif", "none.svs", "--dry-run")
    assert result.code == 1
    assert "none: none.svs: no such file" in result.out
    assert "1 of 2 to do" in result.out
    assert result.error.startswith("Error: 1 of 2 maps would not be made: none; the reasons")
    (work / "maps").mkdir()
    (work / "maps" / "S0001.h5").write_text("mine")
    lines = command("map", "--patients-file", "ids.txt", "--dry-run").out.splitlines()
    assert lines[0].startswith("S0001: maps/S0001.h5: not a usable map (")
    assert lines[0].endswith("; make it again, with --overwrite")
    assert re.fullmatch(r"S0002: to do, \d+ patches, \d\.\d MB", lines[1])
    result = command("map", "--slide", "none.svs", "--dry-run", "--json")
    assert (result.code, len(json.loads(result.out))) == (1, 1)


def test_calls_before_smoothing_are_printed(work: Path, command: RunCommand):
    options = ("--patient", "S0001", "--no-cam", "--no-image")
    raw = r"maps/S0001.h5  \d+ patches, \d+\.\d% called IDC"
    assert re.fullmatch(rf"{raw}\nflagged: .+", command("map", *options).out.strip())
    result = command("map", *options, "--smooth", "--overwrite")
    unsmoothed = read_map(work / "maps" / "S0001.h5").second_probability.idc_fraction()
    text = rf"{raw}, {unsmoothed:.1%} before smoothing\nflagged: .+"
    assert re.fullmatch(text, result.out.strip())


def test_a_neighbor_model_smooths_maps_unless_smoothing_is_off(
    work: Path, trained: Checkpoint, command: RunCommand
):
    neighbors = NeighborModel((1, 1, 0, 0, 0, 0), bias=0.5, threshold=0.25, patch_um=200.0)
    save_checkpoint(work / "n.pt", replace(trained, neighbors=neighbors))
    options = ("S0001", "--checkpoint", "n.pt", "--no-cam", "--no-image", "--overwrite")
    assert "before smoothing" in command("map", *options).out
    smoothed = read_map(work / "maps" / "S0001.h5")
    assert (smoothed.threshold, smoothed.unsmoothed_threshold) == (0.25, trained.threshold)
    assert "before smoothing" not in command("map", *options, "--no-smooth").out
    plain = read_map(work / "maps" / "S0001.h5")
    assert plain.second_probability is None
    np.testing.assert_array_equal(plain.probability, smoothed.unsmoothed)
    assert (smoothed.probability != plain.probability).any()


def test_flags_are_counted_and_missing_flags_are_named(work: Path, command: RunCommand):
    options = ("map", "--patient", "S0001", "--no-cam", "--no-image")
    counts = json.loads(command(*options, "--json").out)["flagged"]["S0001"]
    assert counts == read_map(work / "maps" / "S0001.h5").flag_counts()
    assert command(*options).out.count("flags") == 0
    with h5py.File("maps/S0001.h5", "a") as file:
        del file["flags"]
    text = "1 kept map has no quality flags (of an older version); --overwrite adds them"
    assert text in command(*options).out.splitlines()
    assert json.loads(command(*options, "--json").out)["without_flags"] == ["S0001"]
    assert "unknown" in command("info", "maps/S0001.h5").out
    # The option is a setting of the map: an existing map is not changed without --overwrite.
    result = command(*options, "--exclude-flagged")
    assert result.code == 1
    assert "was made with another exclusion of flagged patches; --overwrite" in result.err
    assert command(*options, "--exclude-flagged", "--overwrite").code == 0
    assert read_map(work / "maps" / "S0001.h5").exclude_flagged
    assert "left out of areas and regions" in command("info", "maps/S0001.h5").out


def test_at_most_20_reasons_are_printed(work: Path, command: RunCommand):
    bad = [f"bad{number:02}.svs" for number in range(23)]
    for name in bad:
        (work / name).touch()
    result = command("map", "--slide", *bad)
    notes = [line for line in result.err.splitlines() if line.startswith(("no map of", "and "))]
    assert len(notes) == 21
    assert notes[0] == "no map of bad00: bad00.svs: is empty; copy the slide again"
    assert notes[-1] == "and 3 more; --json lists the reasons of all"
    assert (
        "23 of 23 maps were not made: bad00, bad01, bad02, bad03, bad04 and 18 more" in result.error
    )
    failed = json.loads(command("map", "--slide", *bad, "--json").out)["failed"]
    assert list(failed) == [name.removesuffix(".svs") for name in bad]
    report = MapReport(caution={f"P{number}": "unlike" for number in range(22)})
    lines = list(_report_lines(report))
    assert lines[1:22] == [f"  P{number}: unlike" for number in range(20)] + [
        "  and 2 more; wsi-idc info MAP prints the caution of a map"
    ]


def test_all_patients_get_a_table(work: Path, cohort: Pack, command: RunCommand):
    result = command("map", "--all", "--tta", "--no-cam")
    assert "maps/cohort.csv" in result.out
    table = pd.read_csv("maps/cohort.csv", dtype={"patient": str})
    assert table["patient"].tolist() == cohort.patients
    assert table["patches"].sum() == len(cohort)
    assert (table["mean_uncertainty"] > 0).all()
    # The table comes from the maps in memory, and is the same as from their files.
    files = read_cohort(work / "maps").write(work)
    assert all(path.read_bytes() == (work / "maps" / path.name).read_bytes() for path in files[::2])
    with h5py.File("maps/cohort.h5") as file:
        assert file[f"maps/{cohort.patients[2]}/probability"].shape[0] == table["patches"][2]


def test_a_new_map_updates_an_existing_table(
    work: Path, cohort: Pack, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    patient, other = cohort.patients[:2]
    options = ("--patient", patient, "--no-cam", "--no-image")
    assert "cohort.csv" not in command("map", *options).out
    command("map", "--all", "--no-cam", "--no-image")
    before = pd.read_csv("maps/cohort.csv", index_col="patient")
    assert "cohort.csv" not in command("map", *options).out  # the map is kept
    result = command("map", *options, "--tta", "--overwrite")
    assert "maps/cohort.csv  one row for each map" in result.out
    after = pd.read_csv("maps/cohort.csv", index_col="patient")
    views = read_map(work / "maps" / f"{patient}.h5").probability.mean()
    assert after["mean_probability"][patient] == pytest.approx(views, rel=1e-5)
    assert before["mean_probability"][patient] != pytest.approx(views, rel=1e-5)
    pd.testing.assert_series_equal(before.loc[other], after.loc[other])
    note = "cohort.csv is older than these maps; --all or --manifest without --shard updates it"
    assert note in command("map", "--all", "--no-cam", "--overwrite", "--shard", "1/6").err
    monkeypatch.setattr("wsi_idc.cli.map._MAX_UPDATED", 5)
    assert note in command("map", *options, "--overwrite").err
    assert pd.read_csv("maps/cohort.csv", index_col="patient").equals(after)
    assert note not in command("map", "--all", "--no-cam", "--no-image", "--overwrite").err
    assert not pd.read_csv("maps/cohort.csv", index_col="patient").equals(after)


def test_patients_and_slides_without_an_option(work: Path, cohort: Pack, command: RunCommand):
    def planned(*arguments: str) -> list[str]:
        result = command("map", *arguments, "--dry-run", "--json")
        assert result.code == 0, result.err
        return [row["patient"] for row in json.loads(result.out)]

    first, second, third = cohort.patients[:3]
    assert planned(f"{first},{second}", third) == [first, second, third]
    assert planned(f"{first}, {second}") == [first, second]
    assert planned("--patient", f"{first}, {third}") == [first, third]
    assert planned("s.tif") == ["s"]
    assert planned("./s.tif") == ["s"]
    missing = command("map", "none.svs")
    assert (missing.code, "no such file" in missing.err) == (1, True)
    assert command("map", first, "s.tif").code == 2
    (work / first).mkdir()
    result = command("map", first, "--data", "data")
    assert result.code == 2
    assert f"if {first} is a patient, give --patient {first}" in result.error


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["map"], 2, "give patients (PATIENT"),
        (["map", ""], 2, "the path is empty; give a file or a folder"),
        (["map", "--all", "--slide", "s.tif"], 2, "give patients (PATIENT"),
        (["map", "--all", "s.tif"], 2, "give patients (PATIENT"),
        (["map", "--all", "--stride", "25"], 2, "--stride has no effect on a pack"),
        (["map", "--all", "--min-tissue", "0.9"], 2, "--min-tissue has no effect on a pack"),
        (["map", "--slide", "s.tif", "--data", "data"], 2, "--data is for patients of a pack"),
        (["map", "--all", "--no-cam", "--cam-class", "non-idc"], 2, "--cam-class has no effect"),
        (["map", "--slide", "s.tif", "--min-tissue", "nan"], 2, "is not a number"),
        (["map", "--slide", "s.tif", "--cam-layer", "x"], 1, "has no layer 'x'"),
        (["map", "--all", "--cam-layer", "classifier"], 1, "is not a feature map"),
        (["map", "--slide", "s.tif", "--stride", "51"], 1, "s.tif"),
        (["map", "--slide", "s.tif", "--mask", "none.png"], 1, "none.png"),
        (["map", "--manifest", "none.csv"], 1, "none.csv"),
        (["map", "--patients-file", "none.txt"], 1, "none.txt"),
    ],
)
def test_bad_usage_is_one_line_and_makes_no_map(
    work: Path, command: RunCommand, arguments: list[str], code: int, error: str
):
    result = command(*arguments)
    assert result.code == code
    assert error in result.err
    assert "Traceback" not in result.err
    assert not list(work.glob("maps/*.h5"))


def test_an_option_at_its_default_is_ignored(
    work: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
):
    defaults = ["--min-tissue", 0.1, "--no-cam", "--cam-method", "gradcam", "--cam-class", "idc"]
    result = command("map", "--patient", "S0001", *defaults)
    assert result.code == 0, result.err
    monkeypatch.setenv("WSI_IDC_DATA", str(work / "data"))
    result = command("map", "--slide", "s.tif", "--min-tissue", 0)
    assert result.code == 0, result.err


def test_a_table_error_is_printed_after_the_maps(work: Path, cohort: Pack, command: RunCommand):
    maps = work / "maps"
    assert command("map", "--patient", "S0001", "--no-cam").code == 0
    write_map(maps / "cohort.h5", replace(read_map(maps / "S0001.h5"), patient="cohort"))
    result = command("map", "--all", "--no-cam")
    assert result.code == 1
    assert [line for line in result.out.splitlines() if line.startswith("maps/S0002.h5  ")]
    assert "1 kept" in result.out
    assert (
        "the table of the maps is not written: maps/cohort.h5 is the map of a patient" in result.err
    )
    assert (
        result.error == "Error: the maps are written, but their table is not; the reason is above"
    )
    assert read_map(maps / "cohort.h5").patient == "cohort"


# In this process conftest.py sets the precision of every CPU.
FP32 = ("map", "--all", "--precision", "fp32")


def check_same_probabilities(folder: Path, expected_folder: Path, patients: list[str]) -> None:
    """Check that two folders have equal maps of these patients, and no partial files."""
    actual, expected = probabilities(folder), probabilities(expected_folder)
    assert list(actual) == patients
    for patient, values in expected.items():
        np.testing.assert_array_equal(actual[patient], values)
    assert not list(folder.glob(".*"))


@pytest.fixture(scope="module")
def expected_maps(
    cohort: Pack, trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with the maps of every patient, made by one undisturbed process."""
    folder = tmp_path_factory.mktemp("expected")
    builder = MapBuilder(Predictor((trained,)), select_device("cpu"), folder)
    builder.build(PackSource(cohort, cohort.patients))
    return folder


def test_kills_leave_complete_maps_and_the_same_numbers(
    work: Path, cohort: Pack, expected_maps: Path
):
    rng = random.Random(3)
    for _ in range(4):
        process = Command(*FP32, "--out", "killed")
        num_maps, deadline = rng.randint(0, 5), time.monotonic() + 60
        while len(list(work.glob("killed/*.h5"))) < num_maps and time.monotonic() < deadline:
            if process.wait(0.002) is not None:
                break
        time.sleep(rng.random() / 50)
        process.send_signal(signal.SIGKILL)
        process.wait()
        probabilities(work / "killed")  # each is complete
    assert Command(*FP32, "--out", "killed").wait() == 0
    check_same_probabilities(work / "killed", expected_maps, cohort.patients)


def test_a_signal_ends_the_packing_of_a_tree(work: Path):
    pack = open_data(make_tree(work / "tree")).path
    pack.unlink()
    with temporary_path(pack):
        process = Command("map", "--all", "--data", "tree")
        deadline = time.monotonic() + 60
        while "waiting for another process that packs" not in process.text():
            assert time.monotonic() < deadline, process.text()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
    assert "Stopped" in process.text()


def test_two_processes_in_one_folder_make_the_same_maps(
    work: Path, cohort: Pack, expected_maps: Path
):
    both = [Command(*FP32, "--out", "both") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    check_same_probabilities(work / "both", expected_maps, cohort.patients)
