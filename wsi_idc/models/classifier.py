"""A network with all that stands around it: from raw patches to logits and CAM."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_idc.models.registry import Architecture

IDC = 1  # index of the class that maps and CAMs are of


class Head(Protocol):
    """What a linear layer and a convolution that give class scores have in common."""

    weight: Tensor  # (num_classes, C, ...)
    bias: Tensor  # (num_classes,)


def to_images(patches: Tensor) -> Tensor:
    """Return images (N, 3, H, W), float32, 0..1, of patches (N, H, W, 3), uint8.

    In memory the channels stay last, as stored.
    """
    return patches.permute(0, 3, 1, 2).float() / 255


class PatchClassifier(nn.Module):
    """A network that takes patches as they are stored.

    Attributes:
        arch: Its architecture.
        network: Normalised images (N, 3, H, W) to logits (N, num_classes).
        input_px: Side that patches are resized to; None leaves them.
        mean, std: Of each channel, 0..1, as buffers of shape (1, 3, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: Architecture,
        network: nn.Module,
        *,
        input_px: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.arch = arch
        self.network = network
        self.input_px = input_px
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return normalised images at the network's size of images (N, 3, H, W), 0..1."""
        x = images
        if self.input_px is not None and self.input_px != x.shape[-1]:
            size = (self.input_px, self.input_px)
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of patches as stored or of images made of them.

        Args:
            x: Patches (N, H, W, 3), uint8, or images (N, 3, H, W), float, 0..1.
        """
        return self.network(self.preprocess(to_images(x) if x.dtype == torch.uint8 else x))

    @property
    def head(self) -> Head:
        """The layer that gives the class scores."""
        return cast(Head, self.network.get_submodule(self.arch.head))


def logits_and_cam(classifier: PatchClassifier, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Run the network once and return logits and raw Grad-CAM of IDC.

    Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) is relu(sum_k w_k A_k), with w_k the mean over
    the cells of the gradient of the IDC logit with respect to channel k of the map A.

    Args:
        classifier: The network, in eval mode.
        patches: Shape (N, H, W, 3), uint8, or images as ``PatchClassifier.forward`` takes them.

    Returns:
        Logits (N, num_classes) and CAM (N, h, w), both float32.
    """
    compute = _by_head if classifier.arch.closed_form else _by_gradient
    return compute(classifier, patches)


def _by_head(classifier: PatchClassifier, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Grad-CAM without a gradient.

    Behind the CAM layer stand only global average pooling and one linear layer with weights w,
    so the gradient of the IDC logit is w_k / (H W) in every cell of channel k.
    """
    with _outputs_of(classifier.network.get_submodule(classifier.arch.cam_layer)) as kept:
        logits = classifier(patches)
    features = kept[-1].float()  # (N, C, h, w)
    weights = classifier.head.weight[IDC].float()  # (C,)
    # Outside autocast, which would do the sum over channels in half precision.
    with torch.autocast(features.device.type, enabled=False):
        cam = F.relu(torch.einsum("nchw,c->nhw", features, weights))
    return logits.float(), cam / (features.shape[-2] * features.shape[-1])


def _by_gradient(classifier: PatchClassifier, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Grad-CAM with a graph of what follows the CAM layer alone."""
    layer = classifier.network.get_submodule(classifier.arch.cam_layer)
    # Half-precision parameters that autocast keeps from inference mode know no gradient.
    with torch.inference_mode(False), _without_autocast_cache(patches.device.type):
        with torch.no_grad(), _graph_from(layer) as kept:
            logits = classifier(patches)
            features = kept[-1]  # (N, C, h, w)
            cells = features.shape[-2] * features.shape[-1]
            # Scaled, for a gradient spread over the cells may be too small for fp16.
            score = logits[:, IDC].float().sum() * cells
            (gradient,) = torch.autograd.grad(score, features)
        features, weights = features.detach().float(), gradient.float().mean(dim=(2, 3))  # (N, C)
        with torch.autocast(features.device.type, enabled=False):
            cam = F.relu(torch.einsum("nchw,nc->nhw", features, weights))
    return logits.detach().float(), cam / cells


@contextmanager
def _graph_from(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what ``layer`` gives during the block, and record gradients from there on.

    The block must be in ``torch.no_grad``, whose end also ends the recording.
    """
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        # A copy, for a leaf must not be changed by what works in place behind it.
        kept.append(output.detach().requires_grad_().clone())
        return kept[-1]

    handle = layer.register_forward_hook(cut)
    try:
        yield kept
    finally:
        handle.remove()


def _without_autocast_cache(device: str) -> torch.autocast:
    """Return the autocast that is on or off now, but keeping no parameters."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


@contextmanager
def _outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what ``layer`` gives during the block; the hook is taken off again whatever comes."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()
