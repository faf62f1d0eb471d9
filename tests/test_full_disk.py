"""A disk that fills up: a line that says so, nothing half there, and the same command goes on."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.full_disk import SmallDisk, small_disk
from wsi_idc.cli.main import group, run
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


class Said:
    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        self.code = run(lambda: group.main(words, prog_name="wsi-idc", standalone_mode=False))
        self.out, self.err = capsys.readouterr()

    def assert_full(self) -> None:
        assert self.code == 1
        assert "Traceback" not in self.err
        assert self.err.splitlines()[-1].startswith("Error: ")
        assert FULL in self.err


def assert_nothing_half_there(folder: Path) -> None:
    assert [path.name for path in folder.rglob("*.partial")] == []


def same_pixels(one: Path, other: Path) -> bool:
    a, b = Pack(one), Pack(other)
    return a.info == b.info and a.index.equals(b.index) and np.array_equal(a.patches, b.patches)


def test_prepare_goes_on_to_the_same_pack(
    disk: SmallDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tree = tmp_path / "tree"
    write_cohort(tree, num_patients=6, patches_per_patient=40, seed=1)
    for num_bytes in (16_384, 1_200_000, 3_000_000):  # of none, of the patches, of the pack
        disk.resize(num_bytes)
        Said(capsys, "prepare", tree, "--out", disk.path / "a.h5", "-q").assert_full()
        assert_nothing_half_there(disk.path)
        assert not (disk.path / "a.h5").exists()
    disk.resize(PLENTY)
    assert Said(capsys, "prepare", tree, "--out", disk.path / "a.h5").code == 0
    assert Said(capsys, "prepare", tree, "--out", tmp_path / "b.h5").code == 0
    assert same_pixels(disk.path / "a.h5", tmp_path / "b.h5")


def test_train_goes_on_to_the_same_weights(
    disk: SmallDisk, cohort: Pack, trained: Checkpoint, capsys: pytest.CaptureFixture[str]
):
    assert trained.source is not None
    command = ["train", "--model", "cnn-bn", "--epochs", "2", "--batch-size", "16"]
    command += ["--split", "ratio:50/25/25", "--device", "cpu", "--data", str(cohort.path)]
    command += ["--out", str(disk.path / "run"), "-q"]
    best = trained.source.stat().st_size
    last = (trained.source.parent / "last.pt").stat().st_size
    # Of no picture, of no checkpoint, of no state, of a second state beside the first.
    for num_bytes in (16_384, 600_000, best + 900_000, best + last + 900_000):
        disk.resize(num_bytes)
        Said(capsys, *command).assert_full()
        assert_nothing_half_there(disk.path)
    disk.resize(PLENTY)
    assert Said(capsys, *command).code == 0
    found = load_checkpoint(disk.path / "run" / "best.pt")
    for name, value in trained.state.items():
        assert torch.equal(found.state[name], value)
    assert (found.temperature, found.threshold) == (trained.temperature, trained.threshold)


def test_map_stops_keeps_what_is_made_and_goes_on_with_the_rest(
    disk: SmallDisk,
    cohort: Pack,
    trained: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    command = ["map", "--all", "--data", cohort.path, "--checkpoint", trained.source]
    command += ["--device", "cpu"]
    assert Said(capsys, *command, "--out", tmp_path / "whole").code == 0
    sizes = [(tmp_path / "whole" / f"{one}.h5").stat().st_size for one in cohort.patients]
    disk.resize(int(sum(sizes) * 0.6))
    said = Said(capsys, *command, "--out", disk.path / "maps")
    said.assert_full()
    assert said.err.count("no space left") == 1
    made = sorted((disk.path / "maps").glob("[!c]*.h5"))
    assert 0 < len(made) < len(cohort.patients)
    for path in made:
        read_map(path)
    assert_nothing_half_there(disk.path)
    disk.resize(PLENTY)
    before = {path: path.stat().st_mtime_ns for path in made}
    assert Said(capsys, *command, "--out", disk.path / "maps").code == 0
    assert {path: path.stat().st_mtime_ns for path in made} == before
    for patient in cohort.patients:
        one, other = (
            read_map(folder / f"{patient}.h5")
            for folder in (disk.path / "maps", tmp_path / "whole")
        )
        assert np.array_equal(one.logit, other.logit)
        assert np.array_equal(one.cam_mosaic(), other.cam_mosaic(), equal_nan=True)
    with h5py.File(disk.path / "maps" / "cohort.h5") as file:
        assert file.attrs["num_maps"] == len(cohort.patients)


@pytest.fixture
def maps(
    cohort: Pack, trained: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    out = tmp_path / "maps"
    patients = [word for patient in cohort.patients[:2] for word in ("--patient", patient)]
    said = Said(capsys, "map", *patients, "--data", cohort.path, "--checkpoint", trained.source,
                "--device", "cpu", "--out", out)  # fmt: skip
    assert said.code == 0
    return out


@pytest.mark.parametrize("name", ["eval", "report", "render", "export", "explore", "synth"])
def test_every_other_result_is_whole_or_not_there(
    disk: SmallDisk,
    maps: Path,
    cohort: Pack,
    trained: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
):
    monkeypatch.chdir(tmp_path)
    command = {
        "eval": [
            *("eval", "--checkpoint", trained.source, "--data", cohort.path, "--device", "cpu"),
            *("--num-resamples", 100, "--out", disk.path / "out"),
        ],
        "report": ["report", *sorted(maps.glob("*.h5")), "--out", disk.path / "out"],
        "render": ["render", *sorted(maps.glob("*.h5")), "--out", disk.path / "out"],
        "export": ["export", *sorted(maps.glob("*.h5")), "--out", disk.path / "out"],
        "explore": ["explore", "--data", cohort.path, "--out", disk.path / "out"],
        "synth": ["synth", disk.path / "out", "--num-patients", 2],
    }[name]
    said = Said(capsys, *command)
    assert said.code == 1
    assert "Traceback" not in said.err
    assert "no space left on device" in said.err.lower()
    assert_nothing_half_there(disk.path)
    disk.resize(PLENTY)
    said = Said(capsys, *command)
    assert said.code == 0, said.err
