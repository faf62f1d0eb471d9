"""Feature map of a transformer, or of another network that has no module for it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

FEATURE_MAP = "feature_map"  # name of the module whose output is the feature map
_MAX_PREFIX = 16  # number of tokens before the grid: the class token, and registers
_MIN_SIDE = 2


class MappedNetwork(nn.Module):
    """A network whose feature map is the output of the module ``feature_map``.

    The feature map of a transformer is the grid of its patch tokens. If the network classifies a
    class token, the feature map is the input of the last block: the patch tokens after this block
    have no effect on the logits.

    Attributes:
        encoder: Network that computes the logits.
        feature_map: Module that returns its input, shape (N, C, h, w).
    """

    def __init__(
        self, encoder: nn.Module, layout: str, block: str | None, head: str | None = None
    ) -> None:
        """Add the feature map to a network.

        Args:
            encoder: Network that computes the logits. Its methods ``forward_features`` and
                ``forward_head`` are used with ``block=None``.
            layout: Layout of the features: "NCHW", "NHWC", or "NTC" (tokens).
            block: Name of the block whose first input is the feature map; None: the feature map is
                the input of the head.
            head: Name of the module that computes logits from pooled features; None: the method
                ``forward_head`` computes logits.
        """
        super().__init__()
        self.encoder, self.feature_map = encoder, nn.Identity()
        self.layout, self.block, self.head = layout, block, head
        if block is not None:
            encoder.get_submodule(block).register_forward_pre_hook(self._before_block)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, num_classes) of normalized images (N, 3, H, W)."""
        encoder: Any = self.encoder
        if self.block is not None and self.head is None:
            return encoder(x)
        features = encoder.forward_features(x)
        if self.block is None:
            features = self._through_map(features)
        if self.head is None:
            return encoder.forward_head(features)
        return encoder.get_submodule(self.head)(encoder.forward_head(features, pre_logits=True))

    def _before_block(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._through_map(inputs[0]), *inputs[1:])

    def _through_map(self, features: Tensor) -> Tensor:
        """Pass the grid of the features through the module ``feature_map``."""
        if self.layout == "NCHW":
            return self.feature_map(features)
        if self.layout == "NHWC":
            return self.feature_map(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        grid = token_grid(features.shape[1])
        if grid is None:
            raise ValueError(f"{features.shape[1]} tokens are no square grid")
        num_prefix, side = grid
        prefix, tokens = features[:, :num_prefix], features[:, num_prefix:]
        cells = self.feature_map(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return torch.cat([prefix, cells.flatten(2).transpose(1, 2)], dim=1)


def token_grid(num_tokens: int) -> tuple[int, int] | None:
    """Return the number of tokens before the square grid, and the side of the grid.

    Return None if the tokens are no square grid. The tokens before the grid are the class token and
    registers.
    """
    side = math.isqrt(num_tokens)
    num_prefix = num_tokens - side**2
    return None if side < _MIN_SIDE or num_prefix > _MAX_PREFIX else (num_prefix, side)
