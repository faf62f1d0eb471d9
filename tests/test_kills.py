"""Kill commands that replace an older output, at exact file operations."""

import os
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.commands import Command
from tests.packs import names
from tests.slides.tiffs import write_tiff
from tests.small_slides import make_slides
from wsi_idc.data.pack import Pack
from wsi_idc.geometry.grid import mosaic, shape_of
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint

# Kill the process before its KILL_AT-th rename or removal of a file in the working folder.
_HOOK = """
import os, signal, sys
count, folder = 0, os.getcwd()
def kill(event, arguments):
    global count
    if event in ("os.rename", "os.remove") and os.path.abspath(arguments[0]).startswith(folder):
        count += 1
        if count == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""
_TRAIN = "train --model cnn-bn --epochs 1 --batch-size 16 --device cpu --split ratio:50/25/25"


@pytest.fixture(autouse=True)
def work(small: Pack, trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a working folder with the small pack and a finished run, and change into it."""
    (tmp_path / "data").symlink_to(small.path.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KILL_AT", "0")  # give the variable back after the test
    assert trained.source is not None
    shutil.copytree(trained.source.parent, "runs/old")


def run(line: str, *, kill_at: int = 0) -> None:
    """Run a command line; kill it before this rename or removal, or let it end."""
    Path("hook.py").write_text(_HOOK)
    os.environ["KILL_AT"] = str(kill_at)
    command = Command(*line.split(), hook=Path("hook.py").absolute())
    assert command.wait() == (-signal.SIGKILL if kill_at else 0), command.text()


def files(folder: str) -> dict[str, bytes]:
    """Return the bytes of each file in a folder that is no lock."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_killed_training_keeps_the_finished_run_that_it_replaces():
    run(f"{_TRAIN} --out runs/expected --seed 1")
    old = Path("runs/old/best.pt").read_bytes()
    for kill_at in (2, 3, 6, 14):
        run(f"{_TRAIN} --out runs/old --seed 1 --overwrite", kill_at=kill_at)
        assert old in files("runs/old").values()
    run(f"{_TRAIN} --out runs/old --seed 1 --overwrite")
    assert names(Path("runs/old")) == names(Path("runs/expected"))
    actual, expected = (load_checkpoint(Path(f"runs/{n}/best.pt")) for n in ("old", "expected"))
    torch.testing.assert_close(actual.state, expected.state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("line", "last", "kills"),
    [
        ("export --format wsinfer --checkpoint runs/old --out out", "config.json", [2, 3, 4]),
        pytest.param("explore --out out", "summary.json", [20], marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_leaves_no_mixture(line: str, last: str, kills: list[int]):
    run(line)
    expected = files("out")
    for kill_at in kills:
        Path("out", last).write_text('"old"')
        run(line, kill_at=kill_at)
        assert last not in files("out")
    run(line)
    assert files("out") == expected


def test_a_killed_command_maps_the_slides_of_a_patient_again(small: Pack):
    for name, patient in zip("ab", small.patients, strict=False):
        rows = small.rows_of(patient)
        cells = small.cells()[rows]
        image = mosaic(small.patches[rows], cells, shape=shape_of(cells), fill=255)
        write_tiff(Path(f"{name}.tif"), image, mpp=4)
    Path("slides.csv").write_text("slide,patient\na.tif,P\nb.tif,P\n")
    line = "map --manifest slides.csv --checkpoint runs/old --min-tissue 0 --device cpu --out maps"
    run(line)
    expected, arrays = linked_files("maps"), map_arrays("maps")
    assert sorted(expected) == ["P.h5", "cohort.csv", "cohort.h5", "patients.csv"]
    assert Path("maps/patients.csv").read_text().count("\n") == 2  # header, one patient
    assert sorted(arrays) == ["a.h5", "b.h5"]
    for kill_at in (1, 2, 3, 4, 6):
        shutil.rmtree("maps")
        run(line, kill_at=kill_at)
        assert not Path("maps/cohort.csv").exists()
        run(line)
        assert linked_files("maps") == expected
        for name, columns in map_arrays("maps").items():
            for column, values in columns.items():
                np.testing.assert_array_equal(values, arrays[name][column], err_msg=column)


def linked_files(folder: str) -> dict[str, bytes]:
    """Return the files in a folder of maps that have no date."""
    return {name: data for name, data in files(folder).items() if "/" not in name}


def map_arrays(folder: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the data sets of the maps of a patient's slides; the attributes have a date."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for path in Path(folder, "P").glob("*.h5"):
        columns = arrays.setdefault(path.name, {})
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, columns=columns: (
                    columns.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    return arrays


def test_a_killed_prepare_of_slides_ends_in_the_same_pack():
    make_slides(Path())
    line = "prepare --slides slides/slides.csv --annotations outlines --out {}/a.h5"
    run(line.format("expected"))
    expected, tables = Pack(Path("expected/a.h5")), files("expected")
    for kill_at in (1, 2, 3, 4, 5, 6):
        run(line.format("out"), kill_at=kill_at)
    run(line.format("out"))
    found = Pack(Path("out/a.h5"))
    assert (found.info, found.slides) == (expected.info, expected.slides)
    pd.testing.assert_frame_equal(found.index, expected.index)
    np.testing.assert_array_equal(found.patches, expected.patches)
    assert {**files("out"), "a.h5": b""} == {**tables, "a.h5": b""}
