"""Classifiers with random weights, patches of noise, and compiling in less time, for tests."""

import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi_idc.models.architecture import Architecture
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture


def make_classifier(
    name: str | Architecture,
    *,
    input_px: int | None = None,
    network: nn.Module | None = None,
    interpolation: str = "bilinear",
) -> PatchClassifier:
    """Return an untrained classifier in eval mode, the same for the same arguments."""
    torch.manual_seed(0)
    arch = architecture(name) if isinstance(name, str) else name
    network = arch.build(2) if network is None else network
    mean, std = (0.8, 0.6, 0.7), (0.2, 0.25, 0.2)
    options: Any = {"mean": mean, "std": std, "interpolation": interpolation}
    return PatchClassifier(arch, network, input_px=input_px, **options).eval()


def random_patches(count: int, *, patch_px: int = 50) -> Tensor:
    """Return patches (count, patch_px, patch_px, 3), uint8, of noise."""
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.integers(0, 256, (count, patch_px, patch_px, 3), dtype=np.uint8))


def trace_without_compiling(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Let torch.compile trace networks and run the graphs as they are; return its statistics."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters["stats"]
