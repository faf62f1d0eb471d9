"""A network with all that stands around it: from raw patches to logits and CAM."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_idc.models.registry import Architecture

IDC = 1  # index of the class that maps and CAMs are of


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

    def preprocess(self, patches: Tensor) -> Tensor:
        """Return normalised images (N, 3, H, W), float32, of patches (N, H, W, 3), uint8."""
        x = patches.permute(0, 3, 1, 2).float() / 255  # channels last in memory, as stored
        if self.input_px is not None and self.input_px != x.shape[-1]:
            size = (self.input_px, self.input_px)
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits (N, num_classes) of patches (N, H, W, 3), uint8."""
        return self.network(self.preprocess(patches))

    @property
    def head(self) -> nn.Linear:
        """The linear layer at the end."""
        layer = self.network.get_submodule(self.arch.head)
        assert isinstance(layer, nn.Linear)
        return layer


def logits_and_cam(classifier: PatchClassifier, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Run the network once and return logits and raw Grad-CAM of IDC.

    Behind the CAM layer stand only global average pooling and one linear layer with weights w,
    so the gradient of the IDC logit is w_k / (H W) in every cell of channel k, and Grad-CAM
    (Selvaraju et al. 2017, eq. 1 and 2) is relu(sum_k w_k A_k) / (H W): no backward pass.

    Args:
        classifier: The network, in eval mode.
        patches: Shape (N, H, W, 3), uint8.

    Returns:
        Logits (N, num_classes) and CAM (N, h, w), both float32.
    """
    with _outputs_of(classifier.network.get_submodule(classifier.arch.cam_layer)) as kept:
        logits = classifier(patches)
    features = kept[-1].float()  # (N, C, h, w)
    weights = classifier.head.weight[IDC].float()  # (C,)
    # Outside autocast, which would do the sum over channels in half precision.
    with torch.autocast(features.device.type, enabled=False):
        cam = F.relu(torch.einsum("nchw,c->nhw", features, weights))
    return logits.float(), cam / (features.shape[-2] * features.shape[-1])


@contextmanager
def _outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what ``layer`` gives during the block; the hook is taken off again whatever comes."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()
