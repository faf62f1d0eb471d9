import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import CONFIG
from wsi_idc.core.errors import CheckpointError, RunError
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.registry import MODEL_NAMES, architecture
from wsi_idc.training.config import (
    KNOWN_MODELS,
    TrainConfig,
    resolve,
    resolved_config,
    weights_fingerprint,
)


def test_the_known_models_are_those_of_the_registry():
    architectures = {name: architecture(name) for name in MODEL_NAMES}
    models = {k: (v.input_px or 0, v.imagenet is not None) for k, v in architectures.items()}
    assert models == KNOWN_MODELS
    with pytest.raises(CheckpointError, match="unknown model 'resnet19'; did you mean resnet18"):
        resolve(TrainConfig(model="resnet19"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("cnn-bn", "none", "dataset", 0, 1e-3)),
        ({"optimizer": "sgd"}, ("cnn-bn", "none", "dataset", 0, 1e-2)),
        ({"model": "resnet18"}, ("resnet18", "imagenet", "auto", 224, 3e-4)),
        ({"model": "resnet50", "input_size": 96}, ("resnet50", "imagenet", "auto", 96, 3e-4)),
        ({"model": "efficientnet_b0"}, ("efficientnet-b0", "imagenet", "auto", 224, 3e-4)),
        ({"model": "resnet18", "weights": "none"}, ("resnet18", "none", "dataset", 224, 1e-3)),
        ({"model": "mobilenet-v3-small"}, ("mobilenet_v3_small", "imagenet", "auto", 224, 3e-4)),
        ({"weights": "a.pt", "learning_rate": 0.5}, ("cnn-bn", "a.pt", "auto", 0, 0.5)),
    ],
)
def test_open_values_are_resolved(options: dict, expected: tuple):
    config = resolve(TrainConfig(**options))
    names = ("model", "weights", "normalize", "input_size", "learning_rate")
    assert tuple(getattr(config, name) for name in names) == expected
    assert resolve(config) == config


def test_the_interpolation_is_that_of_the_network():
    pytest.importorskip("timm", reason="timm is not installed")
    for options, expected in (
        ({"model": "cnn"}, "bilinear"),
        ({"model": "efficientnet_b0"}, "bilinear"),
        ({"model": "timm:resnet18"}, "bicubic"),
        ({"model": "timm:resnet18", "interpolation": "bilinear"}, "bilinear"),
        ({"model": "timm:tf_efficientnet_lite4"}, "bilinear"),
        ({"model": "resnet18", "interpolation": "bicubic"}, "bicubic"),
    ):
        config = resolve(TrainConfig(**options))
        assert config.interpolation == expected
        # Runs of version 0.1.0 have no such setting.
        assert ("interpolation" in config.training_settings) == (expected == "bicubic")


def test_a_file_of_initial_weights_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reads = []
    monkeypatch.setattr("wsi_idc.training.config.sha256", lambda path: reads.append(path) or "a1")
    file = tmp_path / "a.pt"
    config = TrainConfig(weights=str(file))
    for content in (b"1", b"22"):
        file.write_bytes(content)
        assert [weights_fingerprint(config) for _ in range(3)] == ["a1"] * 3
    assert reads == [file, file]


def test_initial_weights_that_never_end_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "long.pt").touch()
    os.truncate(tmp_path / "long.pt", 10**12)
    for name, reason in {"pipe": "not a regular file", "long": "larger than 20000 MB"}.items():
        with pytest.raises(RunError, match=f"{name}.pt: {reason}; give imagenet, none or a .pt"):
            weights_fingerprint(TrainConfig(weights=str(tmp_path / f"{name}.pt")))


def test_the_data_are_part_of_the_settings(small: Pack, split: Split):
    settings = resolved_config(CONFIG, small, split)
    assert (settings["weights"], settings["learning_rate"]) == ("none", 1e-3)
    finer = Pack(small.path)
    finer.info = replace(finer.info, mpp=0.5)
    assert resolved_config(CONFIG, finer, split) != settings
    swapped = replace(split, roles={**split.roles, "p0": "test"} | {"p1": "train"})
    assert resolved_config(CONFIG, small, swapped) != settings
    assert resolved_config(replace(CONFIG, target_sensitivity=0.9), small, split) == settings


def test_the_content_of_a_weights_file_counts_and_not_its_path(
    small: Pack, split: Split, finished: Checkpoint, tmp_path: Path
):
    def settings(path: Path) -> dict:
        return resolved_config(replace(CONFIG, weights=str(path)), small, split)

    assert finished.source is not None
    file = tmp_path / "start.pt"
    with pytest.raises(RunError, match="No such file"):
        settings(file)
    file.write_bytes(finished.source.read_bytes())
    assert settings(file) == settings(finished.source)
    file.write_bytes(b"other")
    assert settings(file) != settings(finished.source)


def test_settings_of_runs_need_no_torch():
    code = (
        "import sys, wsi_idc.search.results, wsi_idc.training.runs\n"
        "from wsi_idc.training import config\n"
        "config.resolve(config.TrainConfig(model='resnet50')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
