"""MobileNetV2 without its last layers: its last feature map is fine enough for CAMs of patches."""

from torch import Tensor, nn

from wsi_idc.models.convolution import ReplicatePaddedConv2d

# Groups of equal blocks: expansion, number of channels, number of blocks, stride of the first one
# (Sandler et al. 2018, arXiv:1801.04381, table 2). The original has four more blocks, in which a
# cell has 32 px, and a convolution with 1280 channels.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
)
STEM_CHANNELS = 32
DROPOUT = 0.2
# Start of the names of torchvision's layers that this network does not have.
UNUSED = tuple(f"features.{number}." for number in range(14, 19))


class MobileNetV2S16(nn.Module):
    """MobileNetV2 up to its last block with a stride of 16 px, with torchvision's names of weights.

    Attributes:
        features: Layers that compute the last feature map, shape (N, 96, H // 16, W // 16).
        classifier: Dropout, and a linear layer with 96 inputs and ``num_classes`` outputs.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, STEM_CHANNELS, 3, stride=2)]
        channels = STEM_CHANNELS
        for expansion, width, num_blocks, stride in BLOCKS:
            for number in range(num_blocks):
                own_stride = stride if number == 0 else 1
                layers.append(InvertedResidual(channels, width, expansion, stride=own_stride))
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        linear = nn.Linear(channels, num_classes)
        # The gradients of the two rows are opposite, so the rows stay opposite, too. Therefore the
        # CAM of a class is the evidence against the other class.
        nn.init.zeros_(linear.weight)
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), linear)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, num_classes) of normalized images (N, 3, H, W)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


class InvertedResidual(nn.Module):
    """Block of MobileNetV2: a 1x1 convolution to more channels, a 3x3 depthwise one, a 1x1 one.

    Attributes:
        conv: The convolutions with their batch norms; ReLU6 follows all but the last one.
        is_residual: Whether the input is added to the output.
    """

    def __init__(self, channels: int, out_channels: int, expansion: int, *, stride: int) -> None:
        super().__init__()
        width = channels * expansion
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [_convolution(channels, width)]),
            _convolution(width, width, 3, stride=stride, groups=width),
            *_convolution(width, out_channels)[:2],
        )
        self.is_residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output (N, out_channels, h, w) of feature maps (N, channels, H, W)."""
        output = self.conv(x)
        return x + output if self.is_residual else output


def _convolution(
    channels: int, width: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution, a batch norm and ReLU6."""
    kind = nn.Conv2d if kernel == 1 else ReplicatePaddedConv2d
    convolution = kind(channels, width, kernel, stride=stride, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))
