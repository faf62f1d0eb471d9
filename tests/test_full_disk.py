"""A disk that fills up: a line that says so, nothing half there, and the same command goes on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.cli.commands import CommandResult, RunCommand, run_command
from tests.full_disk import SmallDisk, small_disk
from wsi_idc.data.pack import Pack
from wsi_idc.maps.map_reader import read_map
from wsi_idc.models.checkpoint import Checkpoint, load_checkpoint
from wsi_idc.synthetic.cohort import write_cohort

FULL = "no space left on device; free some space and run again"
PLENTY = 200_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 16_384) as disk:
        yield disk


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    return partial(run_command, capsys)


def assert_full(result: CommandResult, folder: Path) -> None:
    """Check the error of a full disk, and that no file is half there."""
    assert result.code == 1
    assert FULL in result.error
    assert result.err.splitlines()[-1] == result.error
    assert [path.name for path in folder.rglob("*.partial")] == []


def same_pixels(one: Path, other: Path) -> bool:
    a, b = Pack(one), Pack(other)
    return a.info == b.info and a.index.equals(b.index) and np.array_equal(a.patches, b.patches)


def test_prepare_goes_on_to_the_same_pack(disk, tmp_path, command):
    tree = tmp_path / "tree"
    write_cohort(tree, num_patients=6, patches_per_patient=40, seed=1)
    for num_bytes in (16_384, 1_200_000, 3_000_000):  # of none, of the patches, of the pack
        disk.resize(num_bytes)
        assert_full(command("prepare", tree, "--out", disk.path / "a.h5", "-q"), disk.path)
        assert not (disk.path / "a.h5").exists()
    disk.resize(PLENTY)
    assert command("prepare", tree, "--out", disk.path / "a.h5").code == 0
    assert command("prepare", tree, "--out", tmp_path / "b.h5").code == 0
    assert same_pixels(disk.path / "a.h5", tmp_path / "b.h5")


def test_train_goes_on_to_the_same_weights(disk, cohort, trained, command):
    words = "train --model cnn-bn --epochs 2 --batch-size 16 --split ratio:50/25/25 --device cpu -q"
    train = [*words.split(), "--data", cohort.path, "--out", disk.path / "run"]
    best = trained.source.stat().st_size
    last = (trained.source.parent / "last.pt").stat().st_size
    # Of no picture, of no checkpoint, of no state, of a second state beside the first.
    for num_bytes in (16_384, 600_000, best + 900_000, best + last + 900_000):
        disk.resize(num_bytes)
        assert_full(command(*train), disk.path)
    disk.resize(PLENTY)
    assert command(*train).code == 0
    found = load_checkpoint(disk.path / "run" / "best.pt")
    for name, value in trained.state.items():
        assert torch.equal(found.state[name], value)
    assert (found.temperature, found.threshold) == (trained.temperature, trained.threshold)


def test_map_stops_keeps_what_is_made_and_goes_on_with_the_rest(
    disk, cohort, trained, tmp_path, command
):
    make = ["map", "--all", "--data", cohort.path, "--checkpoint", trained.source]
    make += ["--device", "cpu"]
    assert command(*make, "--out", tmp_path / "whole").code == 0
    sizes = [(tmp_path / "whole" / f"{one}.h5").stat().st_size for one in cohort.patients]
    disk.resize(int(sum(sizes) * 0.6))
    result = command(*make, "--out", disk.path / "maps")
    assert_full(result, disk.path)
    assert result.err.count("no space left") == 1
    made = sorted((disk.path / "maps").glob("[!c]*.h5"))
    assert 0 < len(made) < len(cohort.patients)
    for path in made:
        read_map(path)
    disk.resize(PLENTY)
    before = {path: path.stat().st_mtime_ns for path in made}
    assert command(*make, "--out", disk.path / "maps").code == 0
    assert {path: path.stat().st_mtime_ns for path in made} == before
    for patient in cohort.patients:
        one = read_map(disk.path / "maps" / f"{patient}.h5")
        other = read_map(tmp_path / "whole" / f"{patient}.h5")
        assert np.array_equal(one.logit, other.logit)
        assert np.array_equal(one.cam_mosaic(), other.cam_mosaic(), equal_nan=True)
    with h5py.File(disk.path / "maps" / "cohort.h5") as file:
        assert file.attrs["num_maps"] == len(cohort.patients)


@pytest.fixture
def maps(cohort: Pack, trained: Checkpoint, tmp_path: Path, command: RunCommand) -> list[Path]:
    words = [word for patient in cohort.patients[:2] for word in ("--patient", patient)]
    words += ["--data", cohort.path, "--checkpoint", trained.source, "--device", "cpu"]
    assert command("map", *words, "--out", tmp_path / "maps").code == 0
    return sorted((tmp_path / "maps").glob("*.h5"))


@pytest.mark.parametrize("name", ["eval", "report", "render", "export", "explore", "synth"])
def test_every_other_result_is_whole_or_not_there(
    disk, maps, cohort, trained, tmp_path, command, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    data, out = ["--data", cohort.path], ["--out", disk.path / "out"]
    evaluate = ["--checkpoint", trained.source, "--device", "cpu", "--num-resamples", 100]
    words = {
        "eval": ["eval", *evaluate, *data, *out],
        "explore": ["explore", *data, *out],
        "synth": ["synth", disk.path / "out", "--num-patients", 2],
    }.get(name, [name, *maps, *out])
    result = command(*words)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "no space left on device" in result.err.lower()
    assert [path.name for path in disk.path.rglob("*.partial")] == []
    disk.resize(PLENTY)
    result = command(*words)
    assert result.code == 0, result.err
