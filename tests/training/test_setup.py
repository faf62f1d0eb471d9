import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import CONFIG
from wsi_idc.core.errors import CheckpointError, RunError
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import Split
from wsi_idc.runtime.distributed import World
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.state import to_checkpoint


def test_unknown_labels_are_never_trained_on(build: Any, small: Pack):
    blinded = Pack(small.path)
    blinded.index.loc[::2, "label"] = -1
    for rows in build(CONFIG, pack=blinded).rows.values():
        assert (rows % 2 == 1).all()


def test_the_input_is_normalized_by_the_train_patients_only(build: Any, small: Pack, split: Split):
    classifier = build(CONFIG).classifier
    pixels = small.patches[np.isin(small.patient_of, split.patients("train"))] / 255
    mean, std = classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()
    assert mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-6)


@pytest.mark.parametrize(
    ("normalize", "mean"), [("imagenet", [0.485, 0.456, 0.406]), ("symmetric", [0.5] * 3)]
)
def test_the_normalization_may_be_chosen(build: Any, normalize: str, mean: list[float]):
    classifier = build(replace(CONFIG, normalize=normalize)).classifier
    assert classifier.mean.flatten().tolist() == pytest.approx(mean)


def test_the_checkpoint_has_the_interpolation_of_the_training(build: Any):
    for interpolation in ("bilinear", "bicubic"):
        training = build(replace(CONFIG, interpolation=interpolation))
        assert training.classifier.interpolation == interpolation
        checkpoint = to_checkpoint(training)
        assert checkpoint.input.interpolation == interpolation
        assert checkpoint.build().interpolation == interpolation


@pytest.mark.parametrize("imbalance", ["class-weights", "oversample", "focal", "none"])
def test_only_a_correction_of_the_imbalance_shifts_the_log_odds(
    build: Any, small: Pack, imbalance: str
):
    training = build(replace(CONFIG, imbalance=imbalance))
    counts = np.bincount(small.index["label"].to_numpy()[training.rows["train"]])
    is_corrected = imbalance in ("class-weights", "oversample")
    expected = math.log(counts[0] / counts[1]) if is_corrected else 0.0
    assert training.log_odds_shift == pytest.approx(expected)
    weight = training.loss.class_weight
    assert (float(weight[0]) == 1) == (imbalance != "class-weights")
    assert training.loss.focal_gamma == (2.0 if imbalance == "focal" else 0.0)


def test_a_batch_is_split_over_the_processes(build: Any):
    assert build(CONFIG, world=World(0, 3)).micro_batch == 3
    assert build(CONFIG, micro_batch=5).micro_batch == 5
    assert build(CONFIG, micro_batch=50).micro_batch == 8


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "cnn", "input_size": 3}, CheckpointError, "images of 3 px"),
        ({"model": "resnet18", "input_size": 32}, CheckpointError, "images of 32 px"),
        ({"weights": "imagenet"}, CheckpointError, "has no ImageNet weights"),
        ({"batch_size": 4}, RunError, "batch of 4 patches is too small for 5"),
    ],
)
def test_errors_are_one_line(build: Any, options: dict, error: type[Exception], message: str):
    options = {"weights": "none", **options}
    with pytest.raises(error, match=message) as caught:
        build(TrainConfig(**options), world=World(0, 5))
    assert "\n" not in str(caught.value)
