"""Convolution that pads by repeating the edge of the feature map."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ReplicatePaddedConv2d(nn.Conv2d):
    """A convolution whose padding repeats the edge; with stride 1, the output has the input's size.

    With zeros as padding, the values of a CAM would be smaller at the edges of each patch. Then the
    CAM of a slide would show the grid of the patches.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            padding_mode="replicate",
            groups=groups,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output (N, out_channels, h, w) of feature maps (N, in_channels, H, W)."""
        if not torch.compiler.is_compiling():
            # Without autocast: it would pad in fp32, and convert the feature map before and after.
            is_half = x.dtype in (torch.bfloat16, torch.float16)
            with torch.autocast(x.device.type, enabled=False) if is_half else nullcontext():
                x = F.pad(x, self._reversed_padding_repeated_twice, mode="replicate")
            return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)
        # Padding by concatenation: in code compiled by torch 2.15, the gradient of torch's own
        # padding has an unexpected memory format.
        rows, cols = self.kernel_size[0] // 2, self.kernel_size[1] // 2
        x = torch.cat([*[x[..., :1, :]] * rows, x, *[x[..., -1:, :]] * rows], dim=-2)
        x = torch.cat([*[x[..., :1]] * cols, x, *[x[..., -1:]] * cols], dim=-1)
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)
