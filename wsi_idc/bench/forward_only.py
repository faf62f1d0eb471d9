"""Forward passes of the bare network on input that is ready on the device: the upper bound."""

import torch
from numpy.typing import NDArray

from wsi_idc.bench.timing import measure_rate
from wsi_idc.models.batch_norm import fuse_batch_norm
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.runtime.device import DeviceConfig

_BATCH_SIZES = {"cpu": (16, 32, 64, 128), "cuda": (64, 128, 256, 512, 1024)}
# A larger batch needs more memory: it is recommended only if it is faster by this factor.
_MIN_SPEEDUP = 1.03
_SECONDS = 1.0


class BareForward:
    """Forward passes over one normalized and resized batch; no CAM.

    Args:
        checkpoint: Source of the network, which is prepared as for ``wsi-idc map``.
        patches: Shape (n, H, W, 3), uint8.
        device_config: Device and precision.

    Attributes:
        classifier: The network that runs.
        ready: Its input, shape (n, 3, h, w).
        num_batches: Number of forward passes per call.
    """

    def __init__(
        self, checkpoint: Checkpoint, patches: NDArray, device_config: DeviceConfig
    ) -> None:
        classifier = fuse_batch_norm(checkpoint.build()).to(device_config.device)
        self.classifier: PatchClassifier = classifier.to(memory_format=torch.channels_last)
        self._device_config = device_config
        self._network = classifier.network
        if device_config.compiled:
            self._network = torch.compile(classifier.network, dynamic=False)  # type: ignore[assignment]
        with torch.inference_mode():
            on_device = torch.from_numpy(patches).to(device_config.device)
            self.ready = classifier.preprocess(to_images(on_device))
        self.num_batches = 1

    @torch.inference_mode()
    def __call__(self) -> int:
        """Run the forward passes and return the number of patches."""
        for _ in range(self.num_batches):
            with self._device_config.autocast():
                self._network(self.ready)
        return self.num_batches * len(self.ready)

    def rate(self) -> float:
        """Measure patches per second over about a second, after a warm-up."""
        self.num_batches = 1
        measure_rate(self, self._device_config)
        rate = measure_rate(self, self._device_config)
        self.num_batches = max(1, round(rate * _SECONDS / len(self.ready)))
        return measure_rate(self, self._device_config)


def best_batch_size(checkpoint: Checkpoint, patches: NDArray, device_config: DeviceConfig) -> int:
    """Find the smallest batch size that is about as fast as the fastest.

    Args:
        checkpoint: Source of the network.
        patches: Shape (n, H, W, 3), uint8; repeated to fill a batch.
        device_config: Device and precision.
    """
    rates = {}
    for size in _BATCH_SIZES["cuda" if device_config.device.type == "cuda" else "cpu"]:
        batch = patches[[number % len(patches) for number in range(size)]]
        try:
            rates[size] = BareForward(checkpoint, batch, device_config).rate()
        except torch.OutOfMemoryError:
            break
    best = max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate * _MIN_SPEEDUP >= best), default=1)
