"""The network alone, on input that lies ready on the device: what nothing can be faster than."""

import torch
from numpy.typing import NDArray

from wsi_idc.bench.timing import rate_of
from wsi_idc.models.batch_norm import fuse_batch_norm
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.runtime.device import DeviceConfig

_BATCH_SIZES = {"cpu": (16, 32, 64, 128), "cuda": (64, 128, 256, 512, 1024)}
# A larger batch takes more memory: it must be this much faster to be worth it.
_WORTH = 1.03
_SECONDS = 1.0


class BareForward:
    """Forward passes over one batch, normalised and resized beforehand; no CAM.

    Args:
        checkpoint: Its network is made ready as the command does it.
        patches: Shape (n, H, W, 3), uint8.
        compute: Device and precision.

    Attributes:
        classifier: The network that runs.
        ready: Its input, shape (n, 3, h, w).
    """

    def __init__(self, checkpoint: Checkpoint, patches: NDArray, compute: DeviceConfig) -> None:
        classifier = fuse_batch_norm(checkpoint.build()).to(compute.device)
        self.classifier: PatchClassifier = classifier.to(memory_format=torch.channels_last)
        self._compute = compute
        self._network = classifier.network
        if compute.compiled:
            self._network = torch.compile(classifier.network, dynamic=False)  # type: ignore[assignment]
        with torch.inference_mode():
            on_device = torch.from_numpy(patches).to(compute.device)
            self.ready = classifier.preprocess(to_images(on_device))
        self.num_batches = 1

    @torch.inference_mode()
    def __call__(self) -> int:
        """Run ``num_batches`` of them; return how many patches that was."""
        for _ in range(self.num_batches):
            with self._compute.autocast():
                self._network(self.ready)
        return self.num_batches * len(self.ready)

    def rate(self) -> float:
        """Return patches a second, after what only the first run needs."""
        self.num_batches = 1
        rate_of(self, self._compute)
        self.num_batches = max(1, round(rate_of(self, self._compute) * _SECONDS / len(self.ready)))
        return rate_of(self, self._compute)


def best_batch_size(checkpoint: Checkpoint, patches: NDArray, compute: DeviceConfig) -> int:
    """Return the smallest batch size that is about as fast as any.

    Args:
        checkpoint: Its network is measured.
        patches: To take batches from, repeated where they are few; shape (n, H, W, 3), uint8.
        compute: Device and precision.
    """
    rates = {}
    for size in _BATCH_SIZES["cuda" if compute.device.type == "cuda" else "cpu"]:
        batch = patches[[number % len(patches) for number in range(size)]]
        try:
            rates[size] = BareForward(checkpoint, batch, compute).rate()
        except torch.OutOfMemoryError:
            break
    best = max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate * _WORTH >= best), default=1)
