"""From-scratch CNNs for 50 px patches, with and without batch norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channels and number of convolutions of each stage. A 2x2 pooling between stages halves the grid:
# 50 px end in a 6x6 feature map, enough cells for a CAM, each with a large receptive field.
STAGES = ((24, 1), (48, 2), (96, 2), (192, 2))
DROPOUT = 0.3


class PatchCnn(nn.Module):
    """VGG-like stages of 3x3 convolutions, global average pooling and one linear layer.

    Attributes:
        features: From (N, 3, H, W) to the last feature map (N, 192, H // 8, W // 8).
        classifier: Linear layer from 192 to ``num_classes``.
    """

    def __init__(self, num_classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, (width, num_convs) in enumerate(STAGES):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(num_convs):
                layers.append(_Convolution(channels, width, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                # Not in place: a hook on any layer must see the output of that layer.
                layers.append(nn.ReLU())
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al. 2015: without batch norm a deep network trains only from these weights.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, num_classes) of normalized images (N, 3, H, W)."""
        x = self.pool(self.features(x)).flatten(1)  # (N, 192)
        return self.classifier(self.dropout(x))


class _Convolution(nn.Conv2d):
    """A 3x3 convolution with replicate padding, also where torch.compile computes it wrongly.

    Padding by zeros would darken the edge of every patch's CAM, and the mosaic would show a grid.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(
            in_channels, out_channels, 3, padding=1, padding_mode="replicate", bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map (N, out, H, W) of a map (N, in, H, W)."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # torch 2.15 expects the gradient of its own padding in another memory format.
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=-2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
        return F.conv2d(x, self.weight, self.bias)
