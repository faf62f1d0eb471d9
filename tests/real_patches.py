"""The real patches of the data set, shared by all tests of a session; tests skip where absent."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare

ARCHIVES = Path(__file__).resolve().parents[2] / "shared" / "idc"


def _unpack(letters: str, folder: Path) -> Path:
    """Unpack ``idc_LETTER.tar.xz`` of each letter into ``folder``, unless it is there already."""
    archives = [ARCHIVES / f"idc_{letter}.tar.xz" for letter in letters]
    for archive in archives:
        if not archive.exists():
            pytest.skip(f"the real patches are not at {archive}")
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(parents=True)
        for archive in archives:
            subprocess.run(["tar", "-C", partial, "-xJf", archive], check=True)
        partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for real patches, one for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (base / "real").mkdir(exist_ok=True)
    return base / "real"


@pytest.fixture(scope="session")
def real_tree(real_folder: Path) -> Path:
    """Return the patch tree of archives a and b: 15,627 patches."""
    with (real_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _unpack("ab", real_folder / "tree" / "ab")


@pytest.fixture(scope="session")
def real_tree_of_all(real_folder: Path, real_tree: Path) -> Path:
    """Return the patch tree of all four archives: 26,965 patches."""
    with (real_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _unpack("cd", real_folder / "tree" / "cd")
    return real_tree.parent


@pytest.fixture(scope="session")
def real_pack(real_folder: Path, real_tree: Path) -> Pack:
    """Return the patches of archives a and b, packed."""
    path = real_folder / "ab.h5"
    with (real_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            report = prepare(real_tree, path)
            assert (report.num_patches, report.num_patients, report.num_edge) == (15_627, 233, 156)
            assert report.rejected == ()
    return Pack(path)
