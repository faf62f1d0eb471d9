"""Fixtures of the command line: commands in this process, and working folders."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.cli.commands import RunCommand, run_command
from tests.slides.tiffs import write_tiff
from wsi_idc.data.pack import Pack
from wsi_idc.geometry.grid import mosaic, shape_of


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs a command line in this process."""
    return partial(run_command, capsys)


@pytest.fixture
def work(tmp_path: Path, cohort: Pack, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with the synthetic pack in data/, and change into it."""
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data" / "cohort.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slide(work: Path, cohort: Pack) -> Path:
    """Write a slide of one patient's patches into the working folder."""
    rows = cohort.rows_of(cohort.patients[0])
    cells = cohort.cells()[rows]
    image = mosaic(cohort.patches[rows], cells, shape=shape_of(cells), fill=255)
    return write_tiff(work / "s.tif", image, mpp=4)
