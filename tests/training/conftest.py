"""A small cohort, and trainings on it that take a fraction of a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split, make_split
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.training.config import TrainConfig, resolve
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.state import Training
from wsi_idc.training.train import train

# Four steps per epoch on the small cohort.
CONFIG = TrainConfig(epochs=2, batch_size=8)
ONE_EPOCH = TrainConfig(epochs=1, batch_size=8)
Fit = Callable[..., Checkpoint]


@pytest.fixture(scope="session")
def split(small: Pack) -> Split:
    return make_split(small, "ratio:50/25/25")


@pytest.fixture(scope="session")
def fit(small: Pack, split: Split) -> Fit:
    """Return a function that trains on the small cohort; without figures, which take longest."""

    def fit(config: TrainConfig, run: Run, *, split: Split = split, **options: Any) -> Checkpoint:
        options["device_config"] = select_device("cpu")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("draw_curves", "save_png", "augmented_samples"):
                patch.setattr(f"wsi_idc.training.logger.{name}", lambda *_, **__: None)
            return train(config, small, split, run=run, **options)

    return fit


@pytest.fixture(scope="session")
def finished(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return the checkpoint of a finished training with ``CONFIG``; its run is only read."""
    return fit(CONFIG, Run(tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture
def build(small: Pack, split: Split, tmp_path: Path) -> Any:
    """Return a function that builds a training on the small cohort in a folder of the test."""

    def build(config: TrainConfig, **options: Any) -> Training:
        run = Run(tmp_path / "run")
        run.folder.mkdir(exist_ok=True)
        defaults = {"pack": small, "split": split, "device_config": select_device("cpu")}
        return build_training(resolve(config), run=run, **defaults | options)

    return build
