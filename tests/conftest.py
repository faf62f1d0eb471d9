"""What every test stands on: a home of its own, and small worlds of real files."""

from pathlib import Path

import pytest

from tests.trees import make_tree
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the real home, its caches, and the caller's data."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WSI_IDC_CACHE", str(home / "cache"))
    for name in ("WSI_IDC_DATA", "XDG_CACHE_HOME", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a patch tree of three patients and seven patches."""
    return make_tree(tmp_path / "tree")


@pytest.fixture
def pack(tree: Path, tmp_path: Path) -> Pack:
    """Return that tree, packed."""
    return Pack(prepare(tree, tmp_path / "pack" / "idc.h5").pack)
