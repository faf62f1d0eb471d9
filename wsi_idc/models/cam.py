"""Class activation maps (CAMs) of a classifier: where in a patch the evidence for a class lies.

A CAM is raw: never scaled patch by patch. Grad-CAM is computed here, at the last feature map with
a gradient of what follows it alone or, where that is average pooling and a linear layer, with none.
torchcam has the formulas of the other methods; what is here makes them work on batches as on single
patches, without a graph of what stands before the layer.

Where torchcam departs from a paper, so does this. In 0.5.0 gradcam++ leaves out the denominator of
its alphas (the weights are sums of the positive gradients' cubes), and smoothgradcam++ weighs the
map of the last noisy image by the last gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_idc.core.constants import IDC, PATCH_PX
from wsi_idc.models.cam_layers import check_cam_layer, default_cam_layer
from wsi_idc.models.classifier import PatchClassifier

CAM_METHODS = ("gradcam", "gradcam++", "smoothgradcam++", "xgradcam", "layercam")
# Of the noise that smoothgradcam++ adds to each image.
NOISE_SEED = 0


@dataclass(frozen=True)
class CamSpec:
    """Which CAM to compute.

    Attributes:
        method: One of ``CAM_METHODS``.
        layer: Name of the module whose output is weighed; None is the last feature map that is
            fine enough to show anything.
        class_index: The class whose logit is explained.
    """

    method: str = "gradcam"
    layer: str | None = None
    class_index: int = IDC

    def resolve(self, classifier: PatchClassifier) -> "CamSpec":
        """Return which it is of this classifier; ``layer`` is left None at the last feature map."""
        if self.layer is not None:
            return self
        usual = default_cam_layer(classifier.arch, classifier.input_px)
        return self if usual == classifier.arch.cam_layer else replace(self, layer=usual)


@contextmanager
def cam_extractor(
    classifier: PatchClassifier,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    class_index: int = IDC,
) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Lend a function that runs the network on patches and returns logits and CAM of each.

    It takes patches (N, H, W, 3), uint8, or images (N, 3, H, W), float, 0..1, and returns logits
    (N, num_classes) and raw CAM (N, h, w), both float32. What it says of a patch does not depend on
    the others. During the block the classifier is in eval mode.

    Args:
        classifier: The network.
        method: One of ``CAM_METHODS``. Each has a scale of its own.
        layer: Name of the module in the network whose output is weighed; None is the last feature
            map.
        class_index: The class whose logit is explained.

    Raises:
        CheckpointError: No CAM can be taken from ``layer``, or it would be too coarse to show
            anything. For a classifier that resizes nothing the size is known, and this raised, at
            the first patches.
    """
    if method not in CAM_METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(CAM_METHODS)}")
    arch, size = classifier.arch, classifier.input_px
    name = arch.cam_layer if layer is None else layer
    check_cam_layer(arch, size or PATCH_PX, name)

    def extract(patches: Tensor) -> tuple[Tensor, Tensor]:
        check_cam_layer(arch, size or patches.shape[-2], name)
        if method != "gradcam":
            return _by_torchcam(classifier, patches, method, name, class_index)
        if name == arch.cam_layer:
            return logits_and_cam(classifier, patches, class_index=class_index)
        return _by_gradient(classifier, patches, name, class_index)

    with _eval_mode(classifier):
        yield extract


def logits_and_cam(
    classifier: PatchClassifier, patches: Tensor, *, class_index: int = IDC
) -> tuple[Tensor, Tensor]:
    """Run the network once and return logits and raw Grad-CAM at the last feature map.

    Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) is relu(sum_k w_k A_k), with w_k the mean over
    the cells of the gradient of the class's logit with respect to channel k of the map A.

    Args:
        classifier: The network, in eval mode.
        patches: Shape (N, H, W, 3), uint8, or images as ``PatchClassifier.forward`` takes them.
        class_index: The class whose logit is explained.

    Returns:
        Logits (N, num_classes) and CAM (N, h, w), both float32.
    """
    if classifier.arch.closed_form:
        return _by_head(classifier, patches, class_index)
    return _by_gradient(classifier, patches, classifier.arch.cam_layer, class_index)


@torch.no_grad()
def _by_head(
    classifier: PatchClassifier, patches: Tensor, class_index: int
) -> tuple[Tensor, Tensor]:
    """Compute Grad-CAM without a gradient.

    Behind the CAM layer stand only global average pooling and one linear layer with weights w,
    so the gradient of the class's logit is w_k / (H W) in every cell of channel k.
    """
    with _outputs_of(classifier.network.get_submodule(classifier.arch.cam_layer)) as kept:
        logits = classifier(patches)
    return logits.float(), cam_of_head(kept[-1], classifier.head.weight[class_index])


def cam_of_head(features: Tensor, weights: Tensor) -> Tensor:
    """Return Grad-CAM (N, h, w), float32, of a feature map that a mean and a linear layer follow.

    Args:
        features: Shape (N, C, h, w).
        weights: Of the linear layer for the class, shape (C,).
    """
    features = features.float()
    # Outside autocast, which would do the sum over channels in half precision.
    with torch.autocast(features.device.type, enabled=False):
        cam = F.relu(torch.einsum("nchw,c->nhw", features, weights.float()))
    return cam / (features.shape[-2] * features.shape[-1])


def _by_gradient(
    classifier: PatchClassifier, patches: Tensor, layer: str, class_index: int
) -> tuple[Tensor, Tensor]:
    """Compute Grad-CAM with a graph of what follows the layer alone."""
    with _ready_for_gradients(patches.device.type), _graph_from(classifier.network, layer) as kept:
        logits = classifier(patches)
        features = kept[-1]  # (N, C, h, w)
        cells = features.shape[-2] * features.shape[-1]
        # Scaled, for a gradient spread over the cells may be too small for fp16.
        score = logits[:, class_index].float().sum() * cells
        (gradient,) = torch.autograd.grad(score, features)
        features, weights = features.detach().float(), gradient.float().mean(dim=(2, 3))  # (N, C)
        with torch.autocast(features.device.type, enabled=False):
            cam = F.relu(torch.einsum("nchw,nc->nhw", features, weights))
    return logits.detach().float(), cam / cells


def _by_torchcam(
    classifier: PatchClassifier, patches: Tensor, method: str, layer: str, class_index: int
) -> tuple[Tensor, Tensor]:
    """Compute a CAM by torchcam's formula, with a graph of what follows the layer alone."""
    with (
        _ready_for_gradients(patches.device.type),
        # Before torchcam's hooks, which then see what it cut off.
        _graph_from(classifier.network, layer) as kept,
        # Anew for each batch: an extractor holds on to the maps and gradients of its last one.
        _torchcam(method, classifier.network, layer) as extractor,
    ):

        def widen(*_: object) -> None:
            # The whole pass is over: what worked in place on the map is in it, as without autocast.
            extractor.hook_a = [kept[-1].detach().float()]

        with classifier.network.register_forward_hook(widen):
            logits = classifier(patches)
            (cam,) = extractor(class_idx=class_index, scores=logits.float(), normalized=False)
    return logits.detach().float(), cam


def _torchcam(method: str, network: nn.Module, layer: str) -> Any:
    """Return torchcam's extractor, which hooks into the network until its context ends."""
    from torchcam import methods

    kinds = {
        "gradcam++": methods.GradCAMpp,
        "smoothgradcam++": methods.SmoothGradCAMpp,
        "xgradcam": methods.XGradCAM,
        "layercam": methods.LayerCAM,
    }
    # Squares and cubes of a gradient are too small for fp16, and their sums too long for bf16.
    extractor = kinds[method](network, layer, reshape_transform=Tensor.float)
    if method == "smoothgradcam++":
        extractor._distrib = _SameNoise(extractor._distrib)
    return extractor


class _SameNoise:
    """The noise of smoothgradcam++: the same for every patch of a batch, and for every batch.

    torchcam draws from torch's global generator for a whole batch, which makes what it says of a
    patch hang on its place. This is what it draws for a batch of one after ``torch.manual_seed``.
    """

    def __init__(self, normal: torch.distributions.Normal) -> None:
        self._normal = normal
        self._generator = torch.Generator().manual_seed(NOISE_SEED)

    def sample(self, shape: torch.Size) -> Tensor:
        """Return the next noise of that shape (N, ...), equal along the first axis."""
        one = (1, *shape[1:])
        loc, scale = self._normal.loc.expand(one), self._normal.scale.expand(one)
        return torch.normal(loc, scale, generator=self._generator).expand(shape)


@contextmanager
def _graph_from(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Keep the last output of ``layer`` during the block, and record gradients from there on.

    Each run of the network starts without recording. The block must be in ``torch.no_grad``, whose
    end also ends the recording.
    """
    kept: list[Tensor] = []

    def start(module: nn.Module, inputs: object) -> None:
        torch.set_grad_enabled(False)

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        # A copy, for a leaf must not be changed by what works in place behind it.
        kept[:] = [output.detach().requires_grad_().clone()]
        return kept[0]

    with (
        network.register_forward_pre_hook(start),
        network.get_submodule(layer).register_forward_hook(cut),
    ):
        yield kept


@contextmanager
def _ready_for_gradients(device: str) -> Iterator[None]:
    """Leave inference mode during the block, record nothing as yet, and keep autocast as it is.

    But its cache: half-precision parameters that it keeps from inference mode know no gradient.
    """
    autocast = torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
    with torch.inference_mode(False), autocast, torch.no_grad():
        yield


@contextmanager
def _outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what ``layer`` gives during the block."""
    kept: list[Tensor] = []
    with layer.register_forward_hook(lambda module, inputs, output: kept.append(output)):
        yield kept


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode during the block, then each back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
