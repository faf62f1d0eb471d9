"""The real program on a disk whose locks fail as those of some network disks do."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.one_trial import ONE_TRIAL
from wsi_idc.data.pack import Pack

# Between the program, with all its libraries, and the system: no file can be locked.
SHIM = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
MAIN = "from wsi_idc.cli import main; main()"
LOCKING = "import h5py, sys; h5py.File(sys.argv[1], locking=True)"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that makes flock fail, to load ahead of all others."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to make a disk without locks with")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "flock.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", "flock.so", "flock.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "flock.so"


def python(shim: Path, number: int, code: str, *arguments: object, cwd: Path) -> tuple[int, str]:
    """Run Python where every lock fails with ``number``; return its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"LD_PRELOAD": str(shim), "FLOCK_ERRNO": str(number)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


def test_hdf5_would_not_open_a_file_there_if_it_asked_for_a_lock(shim, cohort, tmp_path):
    code, said = python(shim, errno.ENOLCK, LOCKING, cohort.path, cwd=tmp_path)
    assert code == 1
    assert "unable to lock file" in said


@pytest.mark.slow
def test_all_work_goes_on_without_locks(
    shim: Path, cohort: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WSI_IDC_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "data").mkdir()
    shutil.copy(cohort.path, tmp_path / "data")
    (tmp_path / "job.toml").write_text(ONE_TRIAL)
    train = ["train", "--epochs", 1, "--batch-size", 32, "--split", "ratio:50/25/25"]
    for words in (train, ["search", "job.toml"], ["map", "--all"], ["report"]):
        code, said = python(shim, errno.ENOLCK, MAIN, *words, cwd=tmp_path)
        assert code == 0, said
        assert "WARNING" not in said and "is read where it is" not in said
    assert len(list((tmp_path / "maps").glob("S*.h5"))) == 6
    assert (tmp_path / "runs/one/best.toml").exists()
    (copy,) = (tmp_path / "scratch").glob("*/*")
    assert copy.suffix == ".h5"
    assert list(tmp_path.rglob("*.partial")) == []
