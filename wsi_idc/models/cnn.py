"""Small convolutional networks (CNNs) for patches of 50 px, with and without batch norm."""

import torch
from torch import Tensor, nn

from wsi_idc.models.convolution import ReplicatePaddedConv2d

# Number of channels and number of convolutions of each stage. A 2x2 pooling between two stages
# halves the number of rows and columns. The last feature map of a 50 px patch has 6x6 cells. These
# are enough cells for a CAM, and the receptive field of each cell is large.
STAGES = ((24, 1), (48, 2), (96, 2), (192, 2))
DROPOUT = 0.3


class PatchCnn(nn.Module):
    """Small VGG network: stages of 3x3 convolutions, global average pooling and a linear layer.

    Attributes:
        features: Layers that compute the last feature map, shape (N, 192, H // 8, W // 8).
        classifier: Linear layer with 192 inputs and ``num_classes`` outputs.
    """

    def __init__(self, num_classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        layers, channels = list[nn.Module](), 3
        for stage, (width, num_convs) in enumerate(STAGES):
            if stage > 0:
                layers.append(_Pooling(2))
            for _ in range(num_convs):
                layers.append(ReplicatePaddedConv2d(channels, width, 3, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                # ReLU is not in-place: a hook may keep the output of the layer before ReLU.
                layers.append(nn.ReLU())
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al. 2015: a deep network without batch norm needs these initial weights.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, num_classes) of normalized images (N, 3, H, W)."""
        x = self.pool(self.features(x)).flatten(1)  # (N, 192)
        return self.classifier(self.dropout(x))


class _Pooling(nn.MaxPool2d):
    """2x2 pooling that is faster on a CPU if no gradient is needed."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the maximum of each square of 2x2 cells; a last odd row or column is left out."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        rows, cols = (side // 2 * 2 for side in x.shape[-2:])
        left, right = x[..., :rows, :cols:2], x[..., :rows, 1:cols:2]
        widest = torch.maximum(left, right)
        return torch.maximum(widest[..., ::2, :], widest[..., 1::2, :])
