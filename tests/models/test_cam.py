import contextlib
import gc
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchcam import methods

from tests.classifiers import make_classifier, random_patches
from wsi_idc.core.constants import IDC
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.pack import Pack
from wsi_idc.models.cam import CAM_METHODS, NOISE_SEED, cam_extractor, logits_and_cam
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier, to_images

TORCHCAM = {
    "gradcam": methods.GradCAM,
    "gradcam++": methods.GradCAMpp,
    "smoothgradcam++": methods.SmoothGradCAMpp,
    "xgradcam": methods.XGradCAM,
    "layercam": methods.LayerCAM,
}


def plain(
    classifier: PatchClassifier, patch: Tensor, *, method: str, layer: str, class_index: int = IDC
) -> tuple[Tensor, Tensor]:
    """Return logits and CAM of one patch as torchcam's documentation computes them."""
    image = classifier.preprocess(to_images(patch[None])).requires_grad_()
    with TORCHCAM[method](classifier.network, layer) as extractor:
        scores = classifier.network(image)
        torch.manual_seed(NOISE_SEED)
        (cam,) = extractor(class_idx=class_index, scores=scores, normalized=False)
    return scores[0].detach(), cam[0].detach()


def check_against_plain(
    classifier: PatchClassifier,
    patches: Tensor,
    *,
    method: str,
    layer: str | None = None,
    class_index: int = IDC,
) -> None:
    with (
        torch.inference_mode(),
        cam_extractor(classifier, method=method, layer=layer, class_index=class_index) as extract,
    ):
        logits, cams = extract(patches)
    assert logits.dtype == cams.dtype == torch.float32
    largest = 0.0
    for patch, logit, cam in zip(patches, logits, cams, strict=True):
        expected_logit, expected = plain(
            classifier,
            patch,
            method=method,
            layer=layer or classifier.arch.cam_layer,
            class_index=class_index,
        )
        assert torch.allclose(logit, expected_logit, atol=1e-5)
        assert cam.shape == expected.shape
        assert (cam - expected).abs().max() <= 1e-4 * expected.max()
        largest = max(largest, float(expected.max()))
    assert largest > 0


@pytest.mark.parametrize("method", CAM_METHODS)
def test_a_batch_of_tissue_is_what_torchcam_says_of_each_patch(
    method: str, trained: Checkpoint, cohort: Pack
):
    rows = cohort.rows_of(cohort.patients[0])[:6]
    patches = torch.from_numpy(cohort.patches[rows])
    for class_index in (0, IDC):
        check_against_plain(trained.build(), patches, method=method, class_index=class_index)


@pytest.mark.parametrize(
    ("name", "input_px", "layer", "skipped"),
    [
        # Off the last map the denominator of smoothgradcam++ comes near to 0, and rounding decides.
        ("resnet18", 64, "layer3", ("smoothgradcam++",)),
        ("resnet18", 64, "layer2.0.conv1", ("smoothgradcam++",)),
        ("resnet18", 128, None, ("gradcam",)),
        ("squeezenet1_1", 96, None, ("gradcam",)),
        ("densenet121", 128, None, ("gradcam", "gradcam++", "xgradcam")),
    ],
)
def test_a_batch_is_what_torchcam_says_of_each_patch(
    name: str, input_px: int, layer: str | None, skipped: tuple[str, ...]
):
    classifier = make_classifier(name, input_px=input_px)
    for method in CAM_METHODS:
        if method not in skipped:
            check_against_plain(classifier, random_patches(3), method=method, layer=layer)


@pytest.mark.parametrize(
    ("name", "input_px", "closed_form"),
    [
        ("cnn", None, True),
        ("cnn-bn", None, True),
        ("resnet18", 128, True),
        ("efficientnet-b0", 128, True),
        ("densenet121", 64, True),
        ("mobilenet_v3_small", 128, False),
        ("squeezenet1_1", 64, False),
        ("convnext_tiny", 64, False),
    ],
)
def test_grad_cam_is_what_torchcam_computes(name: str, input_px: int | None, closed_form: bool):
    classifier = make_classifier(name, input_px=input_px)
    assert classifier.arch.closed_form == closed_form
    patches = random_patches(4)
    with methods.GradCAM(classifier.network, classifier.arch.cam_layer) as extractor:
        scores = classifier.network(classifier.preprocess(to_images(patches)).requires_grad_())
        expected = extractor(class_idx=IDC, scores=scores, normalized=False)[0]
    with torch.inference_mode():
        logits, cam = logits_and_cam(classifier, patches)
    assert torch.allclose(logits, scores, atol=1e-5)
    assert cam.shape == expected.shape
    assert cam.max() > 0
    assert (cam - expected).abs().max() / expected.abs().max() < 1e-4


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
def test_a_patch_has_the_same_cam_in_any_company(method: str):
    classifier, patches = make_classifier("cnn-bn"), random_patches(5)
    state = torch.get_rng_state()
    with cam_extractor(classifier, method=method) as extract:
        _, cam = extract(patches)
        _, again = extract(patches)
        _, swapped = extract(patches[[0, 4, 3, 2, 1]])
        _, alone = extract(patches[2:3])
    assert torch.equal(again, cam)
    assert torch.equal(swapped[0], cam[0])
    assert torch.allclose(swapped[3], cam[2], rtol=1e-4, atol=1e-4 * float(cam.max()))
    assert torch.allclose(alone[0], cam[2], rtol=1e-4, atol=1e-4 * float(cam.max()))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_images_are_taken_as_patches_are(method: str):
    patches = random_patches(3)
    with cam_extractor(make_classifier("cnn-bn"), method=method) as extract:
        for found, expected in zip(extract(to_images(patches)), extract(patches), strict=True):
            assert torch.equal(found, expected)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


class Broken(nn.Linear):
    """A head that raises once it has been passed ``after`` times."""

    def __init__(self, *, after: int) -> None:
        super().__init__(192, 2)
        self.left = after

    def forward(self, x: Tensor) -> Tensor:
        if self.left == 0:
            raise ZeroDivisionError
        self.left -= 1
        return super().forward(x)


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("after", [0, 1, 9])
@pytest.mark.parametrize("method", CAM_METHODS)
def test_all_is_given_back_whatever_comes(method: str, after: int, grad: bool, closed_form: bool):
    classifier = make_classifier("cnn-bn")
    network = classifier.network
    network.classifier = Broken(after=after)
    network.features.train()
    network.features[0].requires_grad_(False)
    modes = [module.training for module in classifier.modules()]
    flags = [parameter.requires_grad for parameter in classifier.parameters()]
    # smoothgradcam++ runs the network once and then four times with noise.
    raises = after < (5 if method == "smoothgradcam++" else 1)
    expected = pytest.raises(ZeroDivisionError) if raises else contextlib.nullcontext()
    classifier.arch = replace(classifier.arch, closed_form=closed_form)
    with torch.set_grad_enabled(grad):
        with (
            expected,
            cam_extractor(classifier, method=method) as extract,
        ):
            assert not any(module.training for module in classifier.modules())
            logits, cam = extract(random_patches(2))
            assert not logits.requires_grad
            assert not cam.requires_grad
        assert torch.is_grad_enabled() == grad
    assert hooks(classifier) == 0
    assert [module.training for module in classifier.modules()] == modes
    assert [parameter.requires_grad for parameter in classifier.parameters()] == flags
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_the_closed_form_leaves_no_hook_where_the_network_raises():
    classifier = make_classifier("cnn")
    with pytest.raises(RuntimeError):
        logits_and_cam(classifier, torch.zeros(1, 50, 50, 4, dtype=torch.uint8))
    assert hooks(classifier) == 0


def test_hooks_of_others_stay():
    classifier = make_classifier("cnn-bn")
    seen: list[torch.Size] = []
    classifier.network.features.register_forward_hook(lambda m, i, out: seen.append(out.shape))
    for method in CAM_METHODS:
        with cam_extractor(classifier, method=method) as extract:
            extract(random_patches(2))
            assert hooks(classifier) == 1
    assert set(seen) == {(2, 192, 6, 6)}
    assert len(seen) == 4 + 5


@pytest.mark.parametrize(("name", "input_px"), [("cnn-bn", None), ("mobilenet_v3_small", 128)])
def test_inference_mode_changes_nothing(name: str, input_px: int | None):
    classifier = make_classifier(name, input_px=input_px)
    classifier.requires_grad_(False)
    patches = random_patches(2)
    for method in CAM_METHODS:
        with cam_extractor(classifier, method=method) as extract:
            expected_logits, expected = extract(patches)
            with torch.inference_mode():
                logits, cam = extract(patches.clone())
                assert torch.is_inference_mode_enabled()
        assert torch.equal(logits, expected_logits)
        assert torch.equal(cam, expected)


# DenseNet's last ReLU works in place, on the map that a CAM is taken from.
@pytest.mark.parametrize(
    ("name", "input_px"), [("cnn-bn", None), ("resnet18", 128), ("densenet121", 128)]
)
def test_half_precision_is_near_and_its_logits_are_those_without_a_cam(
    name: str, input_px: int | None
):
    classifier = make_classifier(name, input_px=input_px)
    patches = random_patches(2)
    for method in CAM_METHODS:
        with cam_extractor(classifier, method=method) as extract:
            _, expected = extract(patches)
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                half = classifier(patches)  # fills autocast's cache of parameters
                logits, cam = extract(patches)
        assert half.dtype == torch.bfloat16
        assert logits.dtype == cam.dtype == torch.float32
        assert torch.equal(logits, half.float())
        assert not torch.equal(cam, expected)
        assert (cam - expected).abs().max() < 0.05 * expected.max()


@pytest.mark.parametrize("method", CAM_METHODS)
def test_fp16_loses_no_power_of_a_gradient(method: str):
    with cam_extractor(make_classifier("cnn-bn"), method=method) as extract:
        _, expected = extract(random_patches(2))
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
            _, cam = extract(random_patches(2))
    assert (cam - expected).abs().max() < 0.01 * expected.max()


def test_a_network_whose_head_is_bent_works_in_bf16():
    classifier = make_classifier("mobilenet_v3_small", input_px=64)
    patches = random_patches(3)
    _, expected = logits_and_cam(classifier, patches)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = classifier(patches)
        logits, cam = logits_and_cam(classifier, patches)
    assert torch.equal(logits, half.float())
    assert (cam - expected).abs().max() / expected.max() < 0.1


def tensors() -> int:
    gc.collect()
    # Not isinstance, which asks proxies for their class.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("method", CAM_METHODS)
def test_nothing_is_kept_of_a_batch(method: str):
    classifier, patches = make_classifier("cnn-bn"), random_patches(2)
    with cam_extractor(classifier, method=method) as extract:
        extract(patches)
        before = tensors()
        for _ in range(5):
            extract(patches)
            assert hooks(classifier) == 0
        assert tensors() == before


@pytest.mark.slow
def test_memory_stays_flat():
    classifier, patches = make_classifier("cnn-bn"), random_patches(50)
    for method in ("layercam", "smoothgradcam++"):
        with cam_extractor(classifier, method=method) as extract:
            for _ in range(4):
                extract(patches)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(12):
                extract(patches)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 10_000  # kB; the last maps of the 600 patches are 16,588


def test_a_cam_that_shows_nothing_is_refused():
    classifier = make_classifier("resnet18", input_px=64)
    message = (
        r"^CAM of 2x2 cells at layer layer4 of resnet18 at 64 px: too coarse to show anything; "
        r"give --input-size 128 when training, or --cam-layer layer3 \(4x4\), layer2 \(8x8\) or "
        r"layer1 \(16x16\)$"
    )
    with (
        pytest.raises(CheckpointError, match=message),
        cam_extractor(classifier),
    ):
        pytest.fail("was lent")
    with cam_extractor(classifier, layer="layer3") as extract:
        assert extract(random_patches(2))[1].shape == (2, 4, 4)


def test_patches_that_are_smaller_than_usual_are_refused_as_they_come():
    with (
        cam_extractor(make_classifier("cnn-bn")) as extract,
        pytest.raises(CheckpointError, match="CAM of 3x3 cells at layer features of cnn-bn"),
    ):
        extract(random_patches(1, patch_px=24))


def test_a_method_nobody_knows_is_our_mistake():
    with (
        pytest.raises(ValueError, match="scorecam"),
        cam_extractor(make_classifier("cnn"), method="scorecam"),
    ):
        pytest.fail("was lent")


def test_torchcam_is_imported_for_its_methods_alone():
    code = (
        "import sys, torch\n"
        "from tests.classifiers import make_classifier, random_patches\n"
        "from wsi_idc.models.cam import cam_extractor\n"
        "for layer in (None, 'features.10'):\n"
        "    with cam_extractor(make_classifier('cnn-bn'), layer=layer) as extract:\n"
        "        extract(random_patches(1))\n"
        "sys.exit('torchcam' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
