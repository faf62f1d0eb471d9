"""Small convolutional networks (CNNs) for patches of 50 px, with and without batch norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
                layers.append(nn.MaxPool2d(2))
            for _ in range(num_convs):
                convolution = _Convolution(
                    channels, width, 3, padding=1, padding_mode="replicate", bias=not batch_norm
                )
                layers.append(convolution)
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


class _Convolution(nn.Conv2d):
    """A 3x3 convolution that pads by repeating the edge of the feature map.

    With zeros as padding, the values of a CAM would be smaller at the edges of each patch. Then the
    CAM of a slide would show the grid of the patches.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # Padding by concatenation: in code compiled by torch 2.15, the gradient of torch's own
        # padding has an unexpected memory format.
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=-2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
        return F.conv2d(x, self.weight, self.bias)
