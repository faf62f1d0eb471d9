from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.test_compile import needs_a_compiler
from wsi_idc.core.errors import CheckpointError, DeviceError
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import batch_predictor, predict, predict_logits
from wsi_idc.inference.predictor import validate_input
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.runtime.transfer import DeviceTransfer


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_change_nothing(trained: Checkpoint, cohort: Pack, batch_size: int):
    rows = np.arange(30)
    classifier = trained.build()
    with torch.inference_mode():
        logit, cam = logits_and_cam(classifier, torch.from_numpy(cohort.patches[rows]))
    parts = list(
        predict(
            [classifier],
            cohort,
            rows,
            device_config=select_device("cpu"),
            batch_size=batch_size,
            cam=CamSpec(),
        )
    )
    assert [len(part.logit) for part in parts] == [
        min(batch_size, 30 - start) for start in range(0, 30, batch_size)
    ]
    np.testing.assert_allclose(np.concatenate([p.logit for p in parts])[:, 0], logit, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([p.cam for p in parts]), cam, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [16] * 3), (20, [16]), (16, [16])])
def test_no_batch_is_so_small_that_other_kernels_compute_it(
    trained: Checkpoint, cohort: Pack, batch_size: int, sizes: list[int]
):
    classifier, seen = trained.build(), []

    class Spy(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return self.network(images)

    classifier.network = Spy(classifier.network)
    some, compute = np.arange(3), select_device("cpu")
    (*parts,) = predict([classifier], cohort, some, device_config=compute, batch_size=batch_size)
    assert seen == sizes[: len(parts)]
    assert sum(len(part.logit) for part in parts) == 3


def test_too_little_memory_is_a_line_and_still_torchs_own_error(
    trained: Checkpoint, cohort: Pack, monkeypatch: pytest.MonkeyPatch
):
    classifier, compute = trained.build(), select_device("cpu")

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has")

    def said() -> str:
        with pytest.raises(DeviceError) as caught:
            predict_logits(
                [classifier], cohort, np.arange(30), device_config=compute, batch_size=20
            )
        assert isinstance(caught.value, torch.OutOfMemoryError)
        return str(caught.value)

    line = "cpu has too little memory for 20 patches at once; give a smaller --batch-size"
    for owner, name in ((type(classifier.network), "forward"), (DeviceTransfer, "upload")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert said() == line
    monkeypatch.setattr(torch.nn.Module, "to", fail)
    assert said() == "cpu has too little memory for the model; end what else uses it"


def test_bf16_is_close_to_fp32_and_comes_as_float32(trained: Checkpoint, cohort: Pack):
    found = {}
    for precision in ("fp32", "bf16"):
        parts = predict(
            [trained.build()],
            cohort,
            np.arange(40),
            device_config=select_device("cpu", precision),
            cam=CamSpec(),
        )
        (found[precision],) = parts
        assert found[precision].logit.dtype == found[precision].cam.dtype == np.float32
    np.testing.assert_allclose(found["bf16"].logit, found["fp32"].logit, atol=0.1)
    np.testing.assert_allclose(found["bf16"].cam, found["fp32"].cam, atol=0.02)
    assert not np.array_equal(found["bf16"].logit, found["fp32"].logit)


def test_logits_that_are_not_finite_are_never_a_result(trained: Checkpoint, cohort: Pack):
    classifier = trained.build()
    with torch.no_grad():
        classifier.head.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        predict_logits([classifier], cohort, np.arange(3), device_config=select_device("cpu"))


def test_rows_come_in_their_order(trained: Checkpoint, cohort: Pack):
    compute = select_device("cpu")
    forward = predict_logits([trained.build()], cohort, np.arange(20), device_config=compute)
    backward = predict_logits([trained.build()], cohort, np.arange(20)[::-1], device_config=compute)
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-5)


def test_a_model_of_another_scale_or_size_is_refused(trained: Checkpoint, cohort: Pack):
    validate_input(trained, cohort)
    validate_input(replace(trained, input=replace(trained.input, mpp=4.2)), cohort)
    with pytest.raises(CheckpointError, match="trained at 2 um/px"):
        validate_input(replace(trained, input=replace(trained.input, mpp=2.0)), cohort)
    with pytest.raises(CheckpointError, match="takes patches of 96 px"):
        validate_input(replace(trained, input=replace(trained.input, patch_px=96)), cohort)


def test_the_cams_of_eight_views_turn_with_the_patch(trained: Checkpoint, cohort: Pack):
    def cams(patches: np.ndarray) -> np.ndarray:
        with batch_predictor(
            lambda: [trained.build()], device_config=select_device("cpu"), cam=CamSpec(), tta=True
        ) as predicted:
            parts = list(predicted([np.ascontiguousarray(patches)]))
        return np.concatenate([part.cam for part in parts])

    patches = cohort.patches[np.arange(8)]
    as_stored = cams(patches)
    # Of one view alone this is far from so: the network knows no turns.
    np.testing.assert_allclose(
        cams(np.rot90(patches, axes=(1, 2))), np.rot90(as_stored, axes=(1, 2)), atol=1e-5
    )
    np.testing.assert_allclose(cams(patches[:, :, ::-1]), as_stored[:, :, ::-1], atol=1e-5)
    assert np.abs(as_stored - np.rot90(as_stored, axes=(1, 2))).max() > 1e-2 * as_stored.max()


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.filterwarnings("default")
def test_slides_of_any_size_are_compiled_once(trained: Checkpoint, cohort: Pack):
    counters = torch._dynamo.utils.counters
    counters.clear()
    compute = select_device("cpu", compiled=True)
    patches = cohort.patches[np.arange(40)]
    with batch_predictor(
        lambda: [trained.build()], device_config=compute, batch_size=30
    ) as predicted:
        found = [
            np.concatenate([part.logit for part in predicted(slide)])
            for slide in ([patches[:30], patches[30:]], [patches[:3]])
        ]
    assert [len(logit) for logit in found] == [40, 3]
    np.testing.assert_array_equal(found[0][:3], found[1])
    assert counters["stats"]["unique_graphs"] == 1
