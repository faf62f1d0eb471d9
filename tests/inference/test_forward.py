import shutil

import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import make_classifier, random_patches, trace_without_compiling
from wsi_idc.inference.forward import (
    batches_in_flight,
    can_compile,
    compile_predictor,
    shared_copies,
)
from wsi_idc.models.architecture import Architecture
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.novelty import NoveltyModel, recorded_statistics
from wsi_idc.runtime.device import DeviceConfig

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


@pytest.mark.parametrize(
    ("threads", "batch_size", "expected"), [(1, 64, 1), (2, 64, 2), (2, 31, 1), (16, 64, 4)]
)
def test_batches_in_flight_share_the_threads_and_the_memory_of_a_batch(
    monkeypatch: pytest.MonkeyPatch, threads: int, batch_size: int, expected: int
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert batches_in_flight(DeviceConfig(cpu, "bf16"), batch_size) == expected
    assert batches_in_flight(DeviceConfig(cpu, "fp32", compiled=True), batch_size) == 1
    assert batches_in_flight(DeviceConfig(gpu, "bf16"), batch_size) == 1


def test_copies_have_their_own_modules_and_the_same_weights():
    first, second = shared_copies(make_classifier("cnn-bn"), 2)
    tensors = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(one.data_ptr() == two.data_ptr() for one, two in tensors)
    assert not {*first.modules()} & {*second.modules()}


def test_only_networks_and_cams_without_gradient_are_compiled():
    classifier = make_classifier("cnn-bn")
    for cam in (None, CamSpec(class_index=0), CamSpec(layer="features")):
        assert can_compile(classifier, cam)
    for cam in (CamSpec(layer="features.1"), CamSpec(method="layercam")):
        assert not can_compile(classifier, cam)
    assert not can_compile(make_classifier("squeezenet1_1", input_px=64), None)


SLOW = (pytest.mark.slow, needs_a_compiler, pytest.mark.filterwarnings("default"))


@pytest.mark.parametrize(
    ("cam", "compiled"),
    [(None, False), (CamSpec(class_index=0), False), pytest.param(CamSpec(), True, marks=SLOW)],
)
def test_a_traced_or_compiled_network_gives_the_same_results(
    cam: CamSpec | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
):
    if not compiled:
        trace_without_compiling(monkeypatch)
    classifier = make_classifier("cnn-bn").requires_grad_(False)
    patches = random_patches(16)
    layer = "features.4"
    model = NoveltyModel(layer, torch.ones(96), torch.eye(96), torch.arange(2.0), 0.5, 0.1)
    classifier.novelty = model
    logits, maps, distance = compile_predictor(classifier, cam)(patches)
    with recorded_statistics(classifier.network, layer) as recorded, torch.no_grad():
        classifier(patches)
    torch.testing.assert_close(distance, (recorded[0] - 1).norm(dim=1), atol=1e-4, rtol=1e-4)
    expected = logits_and_cam(classifier, patches, class_index=cam.class_index if cam else 1)
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-4)
    if cam is None:
        assert maps is None
    else:
        assert cam.class_index == 0 or maps.max() > 0
        torch.testing.assert_close(maps, expected[1], atol=1e-5, rtol=1e-4)


class Tiny(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean(dim=(2, 3)))


def test_each_of_many_networks_is_compiled(monkeypatch: pytest.MonkeyPatch):
    statistics = trace_without_compiling(monkeypatch)
    arch = Architecture("tiny", Tiny, cam_layer="conv", head="fc", closed_form=True)
    classifier, patches = make_classifier(arch).requires_grad_(False), random_patches(1)
    for _ in range(9):  # one more than torch compiles of one code object
        compile_predictor(classifier, None)(patches)
    assert statistics["unique_graphs"] == 9
