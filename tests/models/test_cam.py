import contextlib
import gc
import importlib
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchcam import methods

from tests.classifiers import make_classifier, random_patches
from wsi_idc import models
from wsi_idc.core.constants import IDC
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.models.cam import CAM_METHODS, NOISE_SEED, CamSpec, cam_extractor, logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier, to_images

TORCHCAM = {
    "gradcam": methods.GradCAM,
    "gradcam++": methods.GradCAMpp,
    "smoothgradcam++": methods.SmoothGradCAMpp,
    "xgradcam": methods.XGradCAM,
    "layercam": methods.LayerCAM,
}


def cams_of(classifier: PatchClassifier, patches: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    with cam_extractor(classifier, **options) as extract:
        return extract(patches)


def assert_equals_torchcam(
    classifier: PatchClassifier,
    patches: Tensor,
    method: str,
    layer: str | None = None,
    class_index: int = IDC,
) -> None:
    """Compare with torchcam patch by patch, as its documentation shows."""
    options = {"method": method, "layer": layer, "class_index": class_index}
    with torch.inference_mode():
        logits, cams = cams_of(classifier, patches, **options)
    assert logits.dtype == cams.dtype == torch.float32
    all_scores, maps = [], []
    for patch in patches:
        image = classifier.preprocess(to_images(patch[None])).requires_grad_()
        with TORCHCAM[method](classifier.network, layer or classifier.arch.cam_layer) as extractor:
            scores = classifier.network(image)
            torch.manual_seed(NOISE_SEED)
            maps += extractor(class_idx=class_index, scores=scores, normalized=False)
        all_scores.append(scores.detach())
    assert torch.allclose(logits, torch.cat(all_scores), atol=1e-5)
    expected = torch.cat(maps).detach()
    assert cams.shape == expected.shape
    assert ((cams - expected).abs().amax((1, 2)) <= 1e-4 * expected.amax((1, 2))).all()
    assert expected.max() > 0


@pytest.mark.parametrize("method", CAM_METHODS)
def test_cams_of_tissue_equal_those_of_torchcam(method: str, trained: Checkpoint, cohort: Pack):
    rows = cohort.rows_of(cohort.patients[0])[:6]
    patches = torch.from_numpy(cohort.patches[rows])
    for class_index in (0, IDC):
        assert_equals_torchcam(trained.build(), patches, method, class_index=class_index)


@pytest.mark.parametrize(
    ("name", "input_px", "layer", "tested"),
    [
        # At earlier layers smoothgradcam++ divides by nearly 0, and rounding decides.
        ("resnet18", 64, "layer3", {*CAM_METHODS} - {"smoothgradcam++"}),
        ("resnet18", 64, "layer2.0.conv1", {*CAM_METHODS} - {"smoothgradcam++"}),
        ("resnet18", 128, None, {*CAM_METHODS}),
        ("squeezenet1_1", 96, None, {*CAM_METHODS}),
        ("densenet121", 128, None, {"gradcam", "smoothgradcam++", "layercam"}),
        ("cnn", None, None, {"gradcam"}),
        ("efficientnet-b0", 128, None, {"gradcam"}),
        ("mobilenet_v3_small", 128, None, {"gradcam"}),
        ("convnext_tiny", 128, None, {"gradcam"}),
    ],
)
def test_cams_of_noise_equal_those_of_torchcam(
    name: str, input_px: int | None, layer: str | None, tested: set[str]
):
    classifier = make_classifier(name, input_px=input_px)
    for method in sorted(tested):
        assert_equals_torchcam(classifier, random_patches(3), method, layer)


@pytest.mark.parametrize(("name", "input_px"), [("cnn-bn", None), ("resnet18", 64)])
def test_the_gradient_gives_the_closed_form(name: str, input_px: int | None):
    classifier = make_classifier(name, input_px=input_px)
    patches = random_patches(4)
    logits, cam = logits_and_cam(classifier, patches)
    classifier.arch = replace(classifier.arch, closed_form=False)
    same_logits, same_cam = logits_and_cam(classifier, patches)
    assert torch.equal(same_logits, logits)
    assert (same_cam - cam).abs().max() / cam.max() < 1e-6


@pytest.mark.parametrize("method", CAM_METHODS)
def test_a_cam_does_not_depend_on_the_other_patches(method: str):
    classifier, patches = make_classifier("cnn-bn"), random_patches(5)
    state = torch.get_rng_state()
    with cam_extractor(classifier, method=method) as extract:
        _, cam = extract(patches)
        assert torch.equal(extract(to_images(patches))[1], cam)
        assert torch.equal(extract(patches)[1], cam)
        _, swapped = extract(patches[[0, 4, 3, 2, 1]])
        _, single = extract(patches[2:3])
    assert torch.equal(swapped[0], cam[0])
    for same in (swapped[3], single[0]):
        assert torch.allclose(same, cam[2], rtol=1e-4, atol=1e-4 * float(cam.max()))
    assert torch.equal(torch.get_rng_state(), state)


def num_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


class Broken(nn.Linear):
    """A head that raises at its call number ``num_calls``."""

    def __init__(self, *, num_calls: int) -> None:
        super().__init__(192, 2)
        self.left = num_calls

    def forward(self, x: Tensor) -> Tensor:
        if self.left == 0:
            raise ZeroDivisionError
        self.left -= 1
        return super().forward(x)


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("num_calls", [0, 1, 9])
@pytest.mark.parametrize("method", CAM_METHODS)
def test_hooks_modes_and_flags_are_restored_also_after_an_error(
    method: str, num_calls: int, grad: bool, closed_form: bool
):
    classifier = make_classifier("cnn-bn")
    network = classifier.network
    network.classifier = Broken(num_calls=num_calls)
    network.features.train()
    network.features[0].requires_grad_(False)
    modes = [module.training for module in classifier.modules()]
    flags = [parameter.requires_grad for parameter in classifier.parameters()]
    # smoothgradcam++ runs the network once, and four times with noise.
    raises = num_calls < (5 if method == "smoothgradcam++" else 1)
    outcome = pytest.raises(ZeroDivisionError) if raises else contextlib.nullcontext()
    classifier.arch = replace(classifier.arch, closed_form=closed_form)
    with torch.set_grad_enabled(grad):
        with outcome, cam_extractor(classifier, method=method) as extract:
            assert not any(module.training for module in classifier.modules())
            logits, cam = extract(random_patches(2))
            assert not logits.requires_grad and not cam.requires_grad
        assert torch.is_grad_enabled() == grad
    assert num_hooks(classifier) == 0
    assert [module.training for module in classifier.modules()] == modes
    assert [parameter.requires_grad for parameter in classifier.parameters()] == flags
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_other_hooks_stay():
    classifier, shapes = make_classifier("cnn-bn"), []
    classifier.network.features.register_forward_hook(lambda m, i, out: shapes.append(out.shape))
    for method in CAM_METHODS:
        cams_of(classifier, random_patches(2), method=method)
        assert num_hooks(classifier) == 1
    assert set(shapes) == {(2, 192, 6, 6)}
    assert len(shapes) == 4 + 5


@pytest.mark.parametrize(("name", "input_px"), [("cnn-bn", None), ("mobilenet_v3_small", 128)])
def test_inference_mode_changes_nothing(name: str, input_px: int | None):
    classifier = make_classifier(name, input_px=input_px).requires_grad_(False)
    for method in CAM_METHODS:
        with cam_extractor(classifier, method=method) as extract:
            expected = extract(random_patches(2))
            with torch.inference_mode():
                actual = extract(random_patches(2))
                assert torch.is_inference_mode_enabled()
        assert all(map(torch.equal, actual, expected))


# DenseNet's last ReLU works in place, on the map that a CAM is taken from.
@pytest.mark.parametrize("name", ["cnn-bn", "resnet18", "densenet121", "mobilenet_v3_small"])
def test_bf16_cams_are_close_and_their_logits_those_without_a_cam(name: str):
    classifier = make_classifier(name, input_px=None if name == "cnn-bn" else 128)
    is_small, patches = name == "mobilenet_v3_small", random_patches(2)
    for method in ("gradcam",) if is_small else CAM_METHODS:
        with cam_extractor(classifier, method=method) as extract:
            _, expected = extract(patches)
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                half = classifier(patches)  # fills autocast's cache of parameters
                logits, cam = extract(patches)
        assert half.dtype == torch.bfloat16
        assert logits.dtype == cam.dtype == torch.float32
        assert torch.equal(logits, half.float())
        assert not torch.equal(cam, expected)
        assert (cam - expected).abs().max() < (0.1 if is_small else 0.05) * expected.max()


@pytest.mark.parametrize("method", CAM_METHODS)
def test_powers_of_a_gradient_do_not_underflow_in_fp16(method: str):
    with cam_extractor(make_classifier("cnn-bn"), method=method) as extract:
        _, expected = extract(random_patches(2))
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
            _, cam = extract(random_patches(2))
    assert (cam - expected).abs().max() < 0.01 * expected.max()


def num_tensors() -> int:
    gc.collect()
    # Not isinstance, which asks proxies for their class.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_no_tensor_of_a_batch_is_kept(request: pytest.FixtureRequest):
    gc.freeze()  # hides the objects of other tests: a collection then is fast
    request.addfinalizer(gc.unfreeze)
    classifier, patches = make_classifier("cnn-bn"), random_patches(2)
    for method in CAM_METHODS:
        with cam_extractor(classifier, method=method) as extract:
            extract(patches)
            before = num_tensors()
            for _ in range(5):
                extract(patches)
                assert num_hooks(classifier) == 0
            assert num_tensors() == before, method
            assert before > 0


def test_the_default_layer_is_fine_enough():
    small, usual = (make_classifier("resnet18", input_px=px) for px in (64, 224))
    assert CamSpec().resolve(small) == CamSpec(layer="layer3")
    assert CamSpec().resolve(usual) == CamSpec()
    assert CamSpec(layer="layer1").resolve(small) == CamSpec(layer="layer1")
    assert cams_of(small, random_patches(2), layer="layer3")[1].shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("name", "input_px", "patch_px", "method", "message"),
    [
        (
            *("resnet18", 64, 50, "gradcam"),
            r"^CAM of 2x2 cells \(layer layer4 of resnet18, images of 64 px\) is too coarse to "
            r"show anything; give --input-size 128 when training, or --cam-layer layer3 \(4x4\), "
            r"layer2 \(8x8\) or layer1 \(16x16\)$",
        ),
        # Patches smaller than usual, which only the first batch shows.
        ("cnn-bn", None, 24, "gradcam", r"CAM of 3x3 cells \(layer features of cnn-bn"),
        ("cnn", None, 50, "scorecam", "scorecam"),
    ],
)
def test_an_unusable_cam_is_refused(
    name: str, input_px: int | None, patch_px: int, method: str, message: str
):
    classifier = make_classifier(name, input_px=input_px)
    with pytest.raises(ValueError if method == "scorecam" else CheckpointError, match=message):
        cams_of(classifier, random_patches(1, patch_px=patch_px), method=method)


def test_grad_cam_does_not_import_torchcam(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchcam", None)  # an import raises ImportError
    monkeypatch.setattr(models, "cam", models.cam)
    monkeypatch.delitem(sys.modules, "wsi_idc.models.cam")
    fresh = importlib.import_module("wsi_idc.models.cam")
    for layer in (None, "features.10"):
        with fresh.cam_extractor(make_classifier("cnn-bn"), layer=layer) as extract:
            extract(random_patches(1))
    with (
        pytest.raises(ImportError),
        fresh.cam_extractor(make_classifier("cnn-bn"), method="layercam") as extract,
    ):
        extract(random_patches(1))
