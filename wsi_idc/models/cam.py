"""Class activation maps (CAMs) of a classifier: the evidence for a class in each cell of a patch.

A CAM is raw: it is never scaled patch by patch. Grad-CAM is computed here. At the last feature map
it needs no gradient if average pooling and a linear layer follow, and else a gradient of the later
layers only. torchcam has the formulas of the other methods; this module runs them on batches, with
the result that each patch has on its own, and with a graph of the later layers only.

Where torchcam departs from a paper, so does this module. In 0.5.0 gradcam++ omits the denominator
of its alphas (the weights are sums of the positive gradients' cubes), and smoothgradcam++ weights
the map of the last noisy image by the last gradients.
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
NOISE_SEED = 0  # of the noise that smoothgradcam++ adds to each image


@dataclass(frozen=True)
class CamSpec:
    """Method, layer and class of a CAM.

    Attributes:
        method: One of ``CAM_METHODS``.
        layer: Name of the module whose output is weighted; None is the last feature map that is
            fine enough.
        class_index: Class whose logit is explained.
    """

    method: str = "gradcam"
    layer: str | None = None
    class_index: int = IDC

    def resolve(self, classifier: PatchClassifier) -> "CamSpec":
        """Fill in the layer for this classifier; None remains for the last feature map."""
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
    """Context manager that yields a function returning the logits and CAMs of a batch.

    The function takes patches (N, H, W, 3), uint8, or images (N, 3, H, W), float, 0..1. It returns
    logits (N, num_classes) and raw CAMs (N, h, w), both float32. The result for a patch does not
    depend on the other patches. The classifier is in eval mode during the block.

    Args:
        classifier: Classifier to explain.
        method: One of ``CAM_METHODS``. Each has a scale of its own.
        layer: Name of the module whose output is weighted; None is the last feature map.
        class_index: Class whose logit is explained.

    Raises:
        CheckpointError: ``layer`` gives no CAM, or one that is too coarse; without resizing this
            is known at the first batch.
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
    """Run the network once; return logits and raw Grad-CAM at the last feature map.

    Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) is relu(sum_k w_k A_k), with w_k the mean over
    the cells of the gradient of the class's logit with respect to channel k of the map A.

    Args:
        classifier: Classifier in eval mode.
        patches: Shape (N, H, W, 3), uint8, or images as ``PatchClassifier.forward`` takes them.
        class_index: Class whose logit is explained.

    Returns:
        Logits (N, num_classes) and CAM (N, h, w), both float32.
    """
    if not classifier.arch.closed_form:
        return _cam_by_gradient(classifier, patches, classifier.arch.cam_layer, class_index)
    # Only average pooling over H x W cells and a linear layer with weights w follow the map, so
    # the gradient of the logit is w_k / (H W) in every cell of channel k.
    layer, outputs = classifier.network.get_submodule(classifier.arch.cam_layer), list[Tensor]()
    with torch.no_grad(), layer.register_forward_hook(lambda *call: outputs.append(call[-1])):
        logits = classifier(patches)
        return logits.float(), cam_of_head(outputs[-1], classifier.head.weight[class_index])


def cam_of_head(features: Tensor, weights: Tensor) -> Tensor:
    """Compute Grad-CAM (N, h, w), float32, of a feature map followed by a mean and a linear layer.

    Args:
        features: Shape (N, C, h, w).
        weights: Weights of the linear layer for the class, shape (C,).
    """
    cells = features.shape[-2] * features.shape[-1]
    return _weighted_map(features, "nchw,c->nhw", weights) / cells


def _weighted_map(features: Tensor, equation: str, weights: Tensor) -> Tensor:
    # Outside autocast, which would sum the channels in half precision.
    with torch.autocast(features.device.type, enabled=False):
        return F.relu(torch.einsum(equation, features.float(), weights.float()))


def _cam_by_gradient(
    classifier: PatchClassifier, patches: Tensor, layer: str, class_index: int
) -> tuple[Tensor, Tensor]:
    """Compute Grad-CAM with a graph of the layers behind ``layer`` only."""
    with _ready_for_gradients(patches.device.type), _graph_from(classifier.network, layer) as kept:
        logits = classifier(patches)
        features = kept[-1]  # (N, C, h, w)
        cells = features.shape[-2] * features.shape[-1]
        # Scaled: a gradient spread over the cells can be too small for fp16.
        score = logits[:, class_index].float().sum() * cells
        (gradient,) = torch.autograd.grad(score, features)
        weights = gradient.float().mean(dim=(2, 3))  # (N, C)
        cam = _weighted_map(features.detach(), "nchw,nc->nhw", weights)
    return logits.detach().float(), cam / cells


def _cam_by_torchcam(
    classifier: PatchClassifier, patches: Tensor, method: str, layer: str, class_index: int
) -> tuple[Tensor, Tensor]:
    """Compute a CAM by torchcam's formula, with a graph of the layers behind ``layer`` only."""
    from torchcam import methods

    extractor_class = {
        "gradcam++": methods.GradCAMpp,
        "smoothgradcam++": methods.SmoothGradCAMpp,
        "xgradcam": methods.XGradCAM,
        "layercam": methods.LayerCAM,
    }[method]
    network = classifier.network
    with (
        _ready_for_gradients(patches.device.type),
        # Registered before torchcam's hooks, which then see the start of the graph.
        _graph_from(network, layer) as kept,
        # One for each batch: an extractor keeps the maps and gradients of its last batch. In
        # float32: squares and cubes of a gradient are too small for fp16, sums too long for bf16.
        extractor_class(network, layer, reshape_transform=Tensor.float) as extractor,
    ):
        if method == "smoothgradcam++":
            extractor._distrib = _same_noise(extractor._distrib)

        def keep_final_map(*_: object) -> None:
            # After the complete forward pass, when in-place layers have changed the map.
            extractor.hook_a = [kept[-1].detach().float()]

        with network.register_forward_hook(keep_final_map):
            logits = classifier(patches)
            (cam,) = extractor(class_idx=class_index, scores=logits.float(), normalized=False)
    return logits.detach().float(), cam


def _same_noise(normal: torch.distributions.Normal) -> Any:
    """Return a source of torchcam's noise for a batch of one after ``torch.manual_seed``."""
    # torchcam's own noise depends on the place of a patch in the batch.
    generator = torch.Generator().manual_seed(NOISE_SEED)

    def sample(shape: torch.Size) -> Tensor:
        single = (1, *shape[1:])
        loc, scale = normal.loc.expand(single), normal.scale.expand(single)
        return torch.normal(loc, scale, generator=generator).expand(shape)

    return SimpleNamespace(sample=sample)


@contextmanager
def _graph_from(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Yield a list with the last output of ``layer``; record gradients there until no_grad ends."""
    kept: list[Tensor] = []

    def start(module: nn.Module, inputs: object) -> None:
        torch.set_grad_enabled(False)

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        # A copy: later in-place layers must not change a leaf of the graph.
        kept[:] = [output.detach().requires_grad_().clone()]
        return kept[0]

    with (
        network.register_forward_pre_hook(start),
        network.get_submodule(layer).register_forward_hook(cut),
    ):
        yield kept


@contextmanager
def _ready_for_gradients(device: str) -> Iterator[None]:
    """Leave inference mode during the block, without recording yet and with the same autocast."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    # No cache: half-precision parameters cached in inference mode have no gradient.
    autocast = torch.autocast(device, dtype, enabled, cache_enabled=False)
    with torch.inference_mode(False), autocast, torch.no_grad():
        yield
