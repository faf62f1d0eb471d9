import shutil

import pytest
import torch

from tests.classifiers import make_classifier, random_patches
from wsi_idc.models.cam import CamSpec, logits_and_cam
from wsi_idc.models.compile import can_compile, compile_predictor

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def test_only_what_needs_no_gradient_is_compiled():
    classifier = make_classifier("cnn-bn")
    assert can_compile(classifier, None)
    assert can_compile(classifier, CamSpec(class_index=0))
    assert can_compile(classifier, CamSpec(layer="features"))
    assert not can_compile(classifier, CamSpec(layer="features.1"))
    assert not can_compile(classifier, CamSpec(method="layercam"))
    assert not can_compile(make_classifier("vgg11", input_px=64), None)


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("cam", [None, CamSpec(), CamSpec(class_index=0)])
def test_compiled_says_the_same(cam: CamSpec | None):
    classifier = make_classifier("cnn-bn").requires_grad_(False)
    patches = random_patches(16)
    logits, found = compile_predictor(classifier, cam)(patches)
    expected = logits_and_cam(classifier, patches, class_index=cam.class_index if cam else 1)
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-4)
    if cam is None:
        assert found is None
    else:
        assert cam.class_index == 0 or found.max() > 0
        torch.testing.assert_close(found, expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.filterwarnings("default")
def test_each_of_many_networks_is_compiled():
    counters = torch._dynamo.utils.counters
    counters.clear()
    patches = random_patches(1)
    for _ in range(9):  # one more than torch compiles of one code
        compile_predictor(make_classifier("cnn").requires_grad_(False), None)(patches)
    assert counters["stats"]["unique_graphs"] == 9
