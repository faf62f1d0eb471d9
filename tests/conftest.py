"""What every test stands on: a home of its own, and small worlds of real files."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packs import make_small_cohort, make_tree
from tests.real_patches import (  # noqa: F401 - fixtures
    real_folder,
    real_pack,
    real_tree,
    real_tree_of_all,
)
from wsi_idc.data.pack import Pack
from wsi_idc.data.prepare import prepare
from wsi_idc.data.splits import make_split
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.synthetic.cohort import write_cohort
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import Run
from wsi_idc.training.train import train


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the real home, its caches, and the caller's data."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WSI_IDC_CACHE", str(home / "cache"))
    job = ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_STEP_NUM_TASKS")
    for name in ("WSI_IDC_DATA", "WSI_IDC_SCRATCH", "WSI_IDC_WEIGHTS", "XDG_CACHE_HOME", *job):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _fp32_by_default() -> Iterator[None]:
    """Let every CPU compute the same numbers, whether it has bf16 or not."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("wsi_idc.runtime.device.cpu_has_bf16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Give the package's log back as it was: commands set it up."""
    package = logging.getLogger("wsi_idc")
    handlers, level = package.handlers[:], package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)


@pytest.fixture
def low_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time in tests that do not look at the pixels of figures."""
    monkeypatch.setattr("wsi_idc.plotting.style.DPI", 40)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a patch tree of three patients and seven patches."""
    return make_tree(tmp_path / "tree")


@pytest.fixture
def pack(tree: Path, tmp_path: Path) -> Pack:
    """Return that tree, packed."""
    return Pack(prepare(tree, tmp_path / "pack" / "idc.h5").pack)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Return a packed synthetic cohort of six patients and about 250 patches."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder / "tree", num_patients=6, patches_per_patient=40, seed=1)
    return Pack(prepare(folder / "tree", folder / "cohort.h5").pack)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Return a pack of four patients with 16 patches each, for short trainings."""
    return make_small_cohort(tmp_path_factory.mktemp("small") / "small.h5")


@pytest.fixture(scope="session")
def trained(cohort: Pack, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a cnn-bn trained on that cohort for two epochs, in a finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "cnn-bn")
    config = TrainConfig(epochs=2, batch_size=16)
    split = make_split(cohort, "ratio:50/25/25")
    return train(config, cohort, split, run=run, device_config=select_device("cpu"))


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plain way of a bench load here: a forked worker dies where coverage is measured."""
    monkeypatch.setattr("wsi_idc.bench.baseline.worker_options", lambda _: {"num_workers": 0})


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceConfig]:
    """Return a CPU with two threads, also on a machine with one core."""
    import torch

    threads = torch.get_num_threads()
    monkeypatch.setattr("wsi_idc.runtime.device.num_threads", lambda: 2)
    yield select_device("cpu")
    torch.set_num_threads(threads)
