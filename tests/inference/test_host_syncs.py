"""Counts of waits, decoded images and large copies per batch, which need no fast machine."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.classifiers import make_classifier
from wsi_idc.data.pack import Pack
from wsi_idc.data.splits import make_split
from wsi_idc.inference.predict import predict
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.training.config import TrainConfig, resolve
from wsi_idc.training.runs import Run
from wsi_idc.training.setup import build_training
from wsi_idc.training.train import run_steps

# Each of these makes the host wait for a GPU.
_WAITS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "nonzero")
_BATCH = 16


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Count the waits and decoded images of this package's code in the thread that computes.

    Calls from torch do not count: its optimizer reads its own count of steps, on the CPU.
    """
    calls: Counter = Counter()
    thread = threading.get_ident()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            caller = sys._getframe(1).f_globals["__name__"]
            if threading.get_ident() == thread and caller.startswith("wsi_idc."):
                calls[name] += 1
            return original(*args, **kwargs)

        patch.setattr(owner, name, counting)

    with monkeypatch.context() as patch:
        for name in _WAITS:
            count(Tensor, name)
        count(torch.cuda, "synchronize")
        count(cv2, "imdecode")
        count(Image, "open")
        yield calls


class _LargeResults(TorchDispatchMode):
    """Counts the operations whose result is as large as a batch of images and is not a view."""

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.counts: Counter = Counter()
        self._num_values = num_values

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {value.data_ptr() for value in args if isinstance(value, Tensor)}
        if (
            isinstance(result, Tensor)
            and result.numel() >= self._num_values
            and result.data_ptr() not in inputs
        ):
            self.counts[func.overloadpacket.__name__] += 1
        return result


@pytest.mark.parametrize("num_batches", [2, 4])
def test_a_map_waits_once_per_batch_and_decodes_nothing(
    cohort: Pack, monkeypatch: pytest.MonkeyPatch, num_batches: int
):
    options = {"device_config": select_device("cpu"), "batch_size": _BATCH, "cam": CamSpec()}
    classifier, rows = make_classifier("cnn-bn"), np.arange(num_batches * _BATCH)
    list(predict([classifier], cohort, rows[:1], **options))
    with counted(monkeypatch) as calls:
        parts = predict([classifier], cohort, rows, **options)
        assert len(list(parts)) == num_batches
    # Logits and CAM, each downloaded and read; on a GPU the download does not wait.
    assert calls == {"cpu": 2 * num_batches, "numpy": 2 * num_batches}


def test_preprocessing_allocates_three_batches_of_images(cohort: Pack):
    classifier = make_classifier("cnn-bn", input_px=96)
    patches = torch.from_numpy(cohort.patches[np.arange(_BATCH)])
    with _LargeResults(_BATCH * 3 * 50 * 50) as mode, torch.no_grad():
        classifier.preprocess(patches)
    # From bytes, minus the mean, and resized; the two divisions are in place.
    assert mode.counts == {"_to_copy": 1, "sub": 1, "upsample_bilinear2d": 1}


def test_a_half_precision_batch_allocates_no_feature_map_in_fp32(cohort: Pack):
    classifier = make_classifier("cnn-bn")
    patches = torch.from_numpy(cohort.patches[np.arange(_BATCH)])
    kinds: Counter = Counter()

    class Kinds(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            # The second stage has 48 channels of 25 x 25 cells.
            if isinstance(result, Tensor) and result.numel() >= _BATCH * 48 * 25 * 25:
                kinds[str(result.dtype)] += 1
            return result

    with Kinds(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        classifier(patches)
    assert kinds["torch.float32"] == 0 < kinds["torch.bfloat16"]


def test_training_steps_wait_for_nothing(
    cohort: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = resolve(TrainConfig(model="cnn-bn", batch_size=_BATCH, clip_norm=0.0))
    split = make_split(cohort, "ratio:50/25/25")
    training = build_training(
        config, cohort, split, run=Run(tmp_path / "run"), device_config=select_device("cpu")
    )
    steps = run_steps(training)
    next(steps)
    with counted(monkeypatch) as calls:
        for _ in range(4):
            next(steps)
    # Random parameters and the count of the running average are on the CPU for every device.
    assert calls.pop("__bool__") <= 4 * 6
    assert calls == {"__int__": 2 * 4}
    steps.close()


def test_a_map_opens_no_image_in_any_thread(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for owner, name in ((cv2, "imdecode"), (Image, "open")):
        monkeypatch.setattr(owner, name, Mock(side_effect=AssertionError("a pack holds pixels")))
    builder = MapBuilder(Predictor((trained,)), select_device("cpu"), tmp_path)
    assert len(builder.build(PackSource(cohort, cohort.patients)).made) == len(cohort.patients)
