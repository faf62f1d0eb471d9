"""Class activation maps (CAMs) of a classifier: the evidence for a class in each part of a patch.

All CAMs of this module are raw: they are not normalized to the range from 0 to 1.

This module computes the method Grad-CAM itself. If only average pooling and a linear layer follow
the last feature map, Grad-CAM of this map needs no gradient. In all other cases, gradients are
computed only for the layers after the feature map.

The library torchcam computes all methods except Grad-CAM. This module changes torchcam so that the
CAM of a patch does not depend on the other patches of the batch.

For two methods, the CAMs of torchcam 0.5.0 differ from the papers. "gradcam++" omits the
denominator of the coefficients alpha, so the weight of a channel is the sum of the cubes of its
positive gradients. "smoothgradcam++" uses the feature map and the gradients of the last noisy
image, instead of the means over all noisy images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_idc.core.constants import IDC, PATCH_PX
from wsi_idc.models.cam_layers import check_cam_layer, default_cam_layer
from wsi_idc.models.classifier import PatchClassifier, eval_mode

CAM_METHODS = ("gradcam", "gradcam++", "smoothgradcam++", "xgradcam", "layercam")
NOISE_SEED = 0  # seed of the noise that smoothgradcam++ adds to each image


@dataclass(frozen=True)
class CamSpec:
    """Method, layer and class of a CAM.

    Attributes:
        method: One of ``CAM_METHODS``.
        layer: Name of the module whose output is the feature map; None: the default layer of the
            classifier, which the function ``default_cam_layer`` chooses.
        class_index: Index of the class whose logit the CAM explains.
    """

    method: str = "gradcam"
    layer: str | None = None
    class_index: int = IDC

    def resolve(self, classifier: PatchClassifier) -> "CamSpec":
        """Return a copy in which the default layer of the classifier replaces ``layer=None``.

        For None, ``cam_extractor`` uses the last feature map. So ``layer`` stays None if the
        default layer is the layer of the last feature map.
        """
        if self.layer is not None:
            return self
        default = default_cam_layer(classifier.arch, classifier.input_px)
        return self if default == classifier.arch.cam_layer else replace(self, layer=default)


@contextmanager
def cam_extractor(
    classifier: PatchClassifier,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    class_index: int = IDC,
) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Context manager that yields a function, which computes the logits and CAMs of a batch.

    The function takes a batch of patches in the same formats as ``logits_and_cam``, and its results
    have the same shapes. The results for a patch do not depend on the other patches. The classifier
    is in eval mode inside the ``with`` block.

    Args:
        classifier: Classifier to explain.
        method: One of ``CAM_METHODS``. The CAMs of different methods have different scales.
        layer: Name of the module whose output is the feature map; None: the last feature map.
        class_index: Index of the class whose logit the CAM explains.

    Raises:
        CheckpointError: ``layer`` has no CAM, or its CAM has too few cells. If the classifier does
            not resize patches, the function can also raise this error.
    """
    if method not in CAM_METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(CAM_METHODS)}")
    arch, input_px = classifier.arch, classifier.input_px
    name = arch.cam_layer if layer is None else layer
    check_cam_layer(arch, input_px or PATCH_PX, name)

    def extract(patches: Tensor) -> tuple[Tensor, Tensor]:
        check_cam_layer(arch, input_px or patches.shape[-2], name)
        if method != "gradcam":
            return _cam_by_torchcam(classifier, patches, method, name, class_index)
        if name == arch.cam_layer:
            return logits_and_cam(classifier, patches, class_index=class_index)
        return _cam_by_gradient(classifier, patches, name, class_index)

    with eval_mode(classifier):
        yield extract


def logits_and_cam(
    classifier: PatchClassifier, patches: Tensor, *, class_index: int = IDC
) -> tuple[Tensor, Tensor]:
    """Compute the logits and the raw Grad-CAMs of a batch, with one forward pass.

    The Grad-CAM of the last feature map A is relu(sum_k w_k A_k) (Selvaraju et al. 2017, eq. 1 and
    2). A_k is channel k of A. The weight w_k is the gradient of the logit with respect to A_k,
    averaged over the cells.

    Args:
        classifier: Classifier in eval mode.
        patches: Patches (N, H, W, 3), uint8, or images (N, 3, H, W), float, 0..1.
        class_index: Index of the class whose logit the CAM explains.

    Returns:
        Logits, shape (N, num_classes), float32.
        Raw Grad-CAMs, shape (N, h, w), float32.
    """
    if not classifier.arch.closed_form:
        return _cam_by_gradient(classifier, patches, classifier.arch.cam_layer, class_index)
    # Only average pooling over h x w cells and a linear layer with weights w follow the feature
    # map. So the gradient of the logit is w_k / (h w) in every cell of channel k.
    layer, outputs = classifier.network.get_submodule(classifier.arch.cam_layer), list[Tensor]()
    with torch.no_grad(), layer.register_forward_hook(lambda *call: outputs.append(call[-1])):
        logits = classifier(patches)
        return logits.float(), cam_of_head(outputs[-1], classifier.head.weight[class_index])


def cam_of_head(features: Tensor, weights: Tensor) -> Tensor:
    """Compute Grad-CAMs; only average pooling and a linear layer may follow ``features``.

    Args:
        features: Last feature map, shape (N, C, h, w); the pooling averages its cells.
        weights: Weights of the linear layer for the class, shape (C,).

    Returns:
        Grad-CAMs, shape (N, h, w), float32.
    """
    cells = features.shape[-2] * features.shape[-1]
    return _weighted_map(features, "nchw,c->nhw", weights) / cells


def _weighted_map(features: Tensor, equation: str, weights: Tensor) -> Tensor:
    # Autocast is off here: it would sum the channels in half precision.
    with torch.autocast(features.device.type, enabled=False):
        return F.relu(torch.einsum(equation, features.float(), weights.float()))


def _cam_by_gradient(
    classifier: PatchClassifier, patches: Tensor, layer: str, class_index: int
) -> tuple[Tensor, Tensor]:
    """Compute logits and Grad-CAMs; record gradients only for the layers after ``layer``."""
    with _gradients_behind(classifier.network, layer, patches.device.type) as kept:
        logits = classifier(patches)
        features = kept[-1]  # (N, C, h, w)
        cells = features.shape[-2] * features.shape[-1]
        # The score is multiplied by ``cells``: the gradient of one cell can be too small for fp16.
        score = logits[:, class_index].float().sum() * cells
        (gradient,) = torch.autograd.grad(score, features)
        weights = gradient.float().mean(dim=(2, 3))  # (N, C)
        cam = _weighted_map(features.detach(), "nchw,nc->nhw", weights)
    return logits.detach().float(), cam / cells


def _cam_by_torchcam(
    classifier: PatchClassifier, patches: Tensor, method: str, layer: str, class_index: int
) -> tuple[Tensor, Tensor]:
    """Run torchcam on a batch; return the logits and the CAMs."""
    from torchcam import methods

    extractor_class = {
        "gradcam++": methods.GradCAMpp,
        "smoothgradcam++": methods.SmoothGradCAMpp,
        "xgradcam": methods.XGradCAM,
        "layercam": methods.LayerCAM,
    }[method]
    network = classifier.network
    with (
        # This hook must be the first: the hooks of torchcam need the tensor that it returns.
        _gradients_behind(network, layer, patches.device.type) as kept,
        # Each batch needs a new extractor, because an extractor keeps maps and gradients. Maps are
        # float32, because fp16 cannot store the cube of a gradient, and bf16 sums are too inexact.
        extractor_class(network, layer, reshape_transform=Tensor.float) as extractor,
    ):
        if method == "smoothgradcam++":
            extractor._distrib = _same_noise(extractor._distrib)

        def keep_final_map(*_: object) -> None:
            # In-place layers may have changed the map, so it is kept after the complete network.
            extractor.hook_a = [kept[-1].detach().float()]

        with network.register_forward_hook(keep_final_map):
            logits = classifier(patches)
            (cam,) = extractor(class_idx=class_index, scores=logits.float(), normalized=False)
    return logits.detach().float(), cam


def _same_noise(normal: torch.distributions.Normal) -> Any:
    """Return an object whose ``sample`` method draws the same noise for each patch of a batch."""
    # The noise of torchcam itself depends on the position of a patch in the batch.
    generator = torch.Generator().manual_seed(NOISE_SEED)

    def sample(shape: torch.Size) -> Tensor:
        single = (1, *shape[1:])
        loc, scale = normal.loc.expand(single), normal.scale.expand(single)
        return torch.normal(loc, scale, generator=generator).expand(shape)

    return SimpleNamespace(sample=sample)


@contextmanager
def _gradients_behind(network: nn.Module, layer: str, device: str) -> Iterator[list[Tensor]]:
    """Context manager that records gradients only for the layers after ``layer``."""
    kept: list[Tensor] = []  # contains the output of ``layer`` after a forward pass

    def start(module: nn.Module, inputs: object) -> None:
        torch.set_grad_enabled(False)

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        # clone: torch raises an error if an in-place layer changes a leaf of the graph.
        kept[:] = [output.detach().requires_grad_().clone()]
        return kept[0]

    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    with (
        torch.inference_mode(False),
        # No cache: a half-precision parameter that was cached in inference mode has no gradient.
        torch.autocast(device, dtype, enabled, cache_enabled=False),
        torch.no_grad(),
        network.register_forward_pre_hook(start),
        network.get_submodule(layer).register_forward_hook(cut),
    ):
        yield kept
