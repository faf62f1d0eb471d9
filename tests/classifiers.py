"""Classifiers with random weights, and patches of noise, for tests."""

import numpy as np
import torch
from torch import Tensor

from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture


def make_classifier(name: str, *, input_px: int | None = None) -> PatchClassifier:
    """Return an untrained classifier in eval mode, the same for the same arguments."""
    torch.manual_seed(0)
    arch = architecture(name)
    network = arch.build(2)
    mean, std = (0.8, 0.6, 0.7), (0.2, 0.25, 0.2)
    return PatchClassifier(arch, network, input_px=input_px, mean=mean, std=std).eval()


def random_patches(count: int, *, patch_px: int = 50) -> Tensor:
    """Return patches (count, patch_px, patch_px, 3), uint8, of noise."""
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.integers(0, 256, (count, patch_px, patch_px, 3), dtype=np.uint8))
