import shutil

import pytest
import torch
from torch import Tensor, nn

from tests.classifiers import make_classifier, random_patches, trace_without_compiling
from wsi_idc.inference.predict import can_compile, compile_predictor
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.registry import Architecture

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def test_only_networks_and_cams_without_gradient_are_compiled():
    classifier = make_classifier("cnn-bn")
    for cam in (None, CamSpec(class_index=0), CamSpec(layer="features")):
        assert can_compile(classifier, cam)
    for cam in (CamSpec(layer="features.1"), CamSpec(method="layercam")):
        assert not can_compile(classifier, cam)
    assert not can_compile(make_classifier("squeezenet1_1", input_px=64), None)


def check_same_results(cam: CamSpec | None) -> None:
    classifier = make_classifier("cnn-bn").requires_grad_(False)
    patches = random_patches(16)
    logits, maps = compile_predictor(classifier, cam)(patches)
    expected = logits_and_cam(classifier, patches, class_index=cam.class_index if cam else 1)
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-4)
    if cam is None:
        assert maps is None
    else:
        assert cam.class_index == 0 or maps.max() > 0
        torch.testing.assert_close(maps, expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.filterwarnings("default")
def test_a_compiled_network_gives_the_same_results():
    check_same_results(CamSpec())


@pytest.mark.parametrize("cam", [None, CamSpec(class_index=0)])
def test_a_traced_network_gives_the_same_results(
    cam: CamSpec | None, monkeypatch: pytest.MonkeyPatch
):
    trace_without_compiling(monkeypatch)
    check_same_results(cam)


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
