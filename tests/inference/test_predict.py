import copy
import shutil
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import trace_without_compiling
from wsi_idc.core.errors import CheckpointError, DeviceError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import (
    RawPrediction,
    batch_predictor,
    predict,
    predict_logits,
)
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.device import DeviceConfig, select_device
from wsi_idc.runtime.transfer import DeviceTransfer

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def run(
    classifier: PatchClassifier, pack: Pack, rows: np.ndarray, **options: Any
) -> list[RawPrediction]:
    options = {"device_config": select_device("cpu")} | options
    return list(predict([classifier], pack, rows, **options))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_no_result(trained: Checkpoint, cohort: Pack, batch_size: int):
    rows, classifier = np.arange(30), trained.build()
    with torch.inference_mode():
        logit, cam = logits_and_cam(classifier, torch.from_numpy(cohort.patches[rows]))
    parts = run(classifier, cohort, rows, batch_size=batch_size, cam=CamSpec())
    assert [len(part.logit) for part in parts] == [
        min(batch_size, 30 - start) for start in range(0, 30, batch_size)
    ]
    prediction = RawPrediction.concatenate(parts)
    np.testing.assert_allclose(prediction.logit[:, 0], logit, atol=1e-5)
    np.testing.assert_allclose(prediction.cam, cam, atol=1e-5)
    np.testing.assert_array_equal(prediction.part(3, 9).cam, prediction.cam[3:9])


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [16] * 3), (20, [16]), (16, [16])])
def test_a_small_batch_is_padded(
    trained: Checkpoint, cohort: Pack, batch_size: int, sizes: list[int]
):
    classifier, seen = trained.build(), []

    class Spy(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return self.network(images)

    classifier.network, classifier.novelty = Spy(classifier.network), None
    parts = run(classifier, cohort, np.arange(3), batch_size=batch_size)
    assert seen == sizes
    assert sum(len(part.logit) for part in parts) == 3


def test_too_little_memory_is_one_line_and_also_torchs_error(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch
):
    classifier = trained.build()

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has")

    batch = "cpu has too little memory for 20 patches at once; give a smaller --batch-size"
    model = "cpu has too little memory for the model; end other programs that use it"
    for owner, name, message in (
        (type(classifier.network), "forward", batch),
        (DeviceTransfer, "upload", batch),
        (nn.Module, "to", model),
    ):
        with monkeypatch.context() as patch, pytest.raises(DeviceError) as caught:
            patch.setattr(owner, name, fail)
            run(classifier, cohort, np.arange(30), batch_size=20)
        assert isinstance(caught.value, torch.OutOfMemoryError)
        assert str(caught.value) == message


def test_bf16_is_close_to_fp32_and_returned_as_float32(trained: Checkpoint, cohort: Pack):
    options: list[dict[str, Any]] = [
        {"device_config": select_device("cpu", precision), "cam": CamSpec()}
        for precision in ("fp32", "bf16")
    ]
    (fp32,), (bf16,) = (run(trained.build(), cohort, np.arange(40), **each) for each in options)
    for prediction in (fp32, bf16):
        assert prediction.logit.dtype == prediction.cam.dtype == np.float32
    np.testing.assert_allclose(bf16.logit, fp32.logit, atol=0.1)
    np.testing.assert_allclose(bf16.cam, fp32.cam, atol=0.02)
    assert not np.array_equal(bf16.logit, fp32.logit)


def test_logits_that_are_not_finite_are_an_error(trained: Checkpoint, cohort: Pack):
    classifier = trained.build()
    with torch.no_grad():
        classifier.head.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        run(classifier, cohort, np.arange(3))


def test_logits_are_in_the_order_of_the_rows(trained: Checkpoint, cohort: Pack):
    device_config, rows = select_device("cpu"), np.arange(20)
    forward, backward = (
        predict_logits(trained.build(), cohort, order, device_config=device_config)
        for order in (rows, rows[::-1])
    )
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-5)
    none = predict_logits(trained.build(), cohort, rows[:0], device_config=device_config)
    assert none.shape == (0, 2)


def test_the_cams_of_eight_views_turn_with_the_patch(trained: Checkpoint, cohort: Pack):
    patches = cohort.patches[np.arange(8)]
    with batch_predictor(
        lambda: [trained.build()], device_config=select_device("cpu"), cam=CamSpec(), tta=True
    ) as predict_batches:

        def cams(batch: np.ndarray) -> np.ndarray:
            return next(predict_batches([np.ascontiguousarray(batch)])).cam

        stored, turned, flipped = map(
            cams, (patches, np.rot90(patches, axes=(1, 2)), patches[:, :, ::-1])
        )
    np.testing.assert_allclose(turned, np.rot90(stored, axes=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(flipped, stored[:, :, ::-1], atol=1e-5)
    # The mean is not symmetric itself: the network knows no turns.
    assert np.abs(stored - np.rot90(stored, axes=(1, 2))).max() > 1e-2 * stored.max()


def test_cams_of_other_grids_are_resized_to_the_first_grid(trained: Checkpoint, cohort: Pack):
    larger = replace(trained, input=replace(trained.input, input_px=100))
    models, rows = [trained.build(), larger.build()], np.arange(2)
    (first,), (second,) = (run(model, cohort, rows, cam=CamSpec()) for model in models)
    (both,) = predict(models, cohort, rows, device_config=select_device("cpu"), cam=CamSpec())
    assert second.cam.shape[1] > first.cam.shape[1]
    assert both.cam.shape == first.cam.shape
    # The part of the logit in the second CAM is kept.
    rest = (2 * both.cam - first.cam).sum(axis=(1, 2))
    np.testing.assert_allclose(rest, second.cam.sum(axis=(1, 2)), rtol=0.1)


@needs_a_compiler
def test_slides_of_any_size_are_compiled_once(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch
):
    statistics = trace_without_compiling(monkeypatch)
    config, patches = select_device("cpu", compiled=True), cohort.patches[np.arange(40)]
    models = [trained.build()]
    with batch_predictor(lambda: models, device_config=config, batch_size=30) as predict_batches:
        first, second = (
            RawPrediction.concatenate(predict_batches(slide)).logit
            for slide in ([patches[:30], patches[30:]], [patches[:3]])
        )
    assert (len(first), len(second)) == (40, 3)
    np.testing.assert_array_equal(first[:3], second)
    assert statistics["unique_graphs"] == 1


@pytest.mark.parametrize("options", [{}, {"cam": CamSpec()}, {"cam": CamSpec(method="layercam")}])
def test_two_batches_in_flight_give_the_same_results_in_the_same_order(
    trained: Checkpoint, cohort: Pack, two_threads: DeviceConfig, options: dict[str, Any]
):
    rows, config = np.arange(150)[::-1] % len(cohort), two_threads
    one, two = (
        run(trained.build(), cohort, rows, device_config=config, batch_size=size, **options)
        for size in (31, 32)  # in a batch of 31 patches, there is only one part of 16 patches
    )
    assert [len(part.logit) for part in two] == [32, 32, 32, 32, 22]
    one, two = map(RawPrediction.concatenate, (one, two))
    for name in ("logit", "cam", "distance"):
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(two, name), getattr(one, name), atol=1e-5)
    assert torch.get_num_threads() == 2


def test_each_batch_in_flight_has_a_thread_and_a_network_of_its_own(
    trained: Checkpoint, cohort: Pack, two_threads: DeviceConfig
):
    both, seen = threading.Barrier(2, timeout=30), []

    class Meeting(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            if isinstance(images, Tensor):  # not while the fusion of batch norms traces the network
                both.wait()  # until another thread is here
                seen.append((len(images), torch.get_num_threads(), id(self)))
            return self.network(images)

        def __deepcopy__(self, memo: dict[int, Any]) -> "Meeting":
            return Meeting(copy.deepcopy(self.network, memo))

    classifier = trained.build()
    classifier.network, classifier.novelty = Meeting(classifier.network), None
    run(classifier, cohort, np.arange(64) % len(cohort), device_config=two_threads, batch_size=32)
    assert [entry[:2] for entry in seen] == [(16, 1)] * 4
    assert len({network for *_, network in seen}) == 2


def test_an_error_of_a_batch_in_flight_is_raised(
    trained: Checkpoint, cohort: Pack, two_threads: DeviceConfig
):
    classifier = trained.build()
    with torch.no_grad():
        classifier.head.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        run(classifier, cohort, np.arange(64) % len(cohort), device_config=two_threads)
    assert torch.get_num_threads() == 2
