"""Bare network: only forward passes, with an input that is already in the device memory."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_idc.bench.timing import measure_rate
from wsi_idc.inference.forward import batches_in_flight, shared_copies
from wsi_idc.models.batch_norm import fuse_batch_norm
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.runtime.device import DeviceConfig

_BATCH_SIZES = {"cpu": (16, 32, 64, 128), "cuda": (64, 128, 256, 512, 1024)}
# Recommend a larger batch only if it is faster by this factor: a larger batch needs more memory.
_MIN_SPEEDUP = 1.03
_SECONDS = 1.0


class BareForward:
    """Benchmark variant that runs forward passes over one preprocessed batch, without CAMs.

    As in ``wsi-idc map``, a CPU computes parts of the batch at the same time.

    Args:
        checkpoint: Checkpoint with the network. The batch norms of the network are fused, as in
            ``wsi-idc map``.
        patches: Patches of the batch, shape (n, H, W, 3), uint8.
        device_config: Device and precision.

    Attributes:
        classifier: Classifier on the device.
        copies: Networks that compute at the same time.
        ready: Normalized and resized input of the network, shape (n, 3, h, w).
    """

    def __init__(
        self, checkpoint: Checkpoint, patches: NDArray, device_config: DeviceConfig
    ) -> None:
        classifier = fuse_batch_norm(checkpoint.build()).to(device_config.device)
        self.classifier: PatchClassifier = classifier.to(memory_format=torch.channels_last)
        self._device_config = device_config
        num_copies = batches_in_flight(device_config, len(patches))
        self.copies = [each.network for each in shared_copies(classifier, num_copies)]
        if device_config.compiled:
            classifier.network.compile(dynamic=False)
        with torch.inference_mode():
            on_device = torch.from_numpy(patches).to(device_config.device)
            self.ready = classifier.preprocess(to_images(on_device))

    def __call__(self, num_batches: int = 1) -> int:
        """Run ``num_batches`` forward passes; return the number of processed patches."""
        if len(self.copies) == 1:
            self._forward(self.copies[0], self.ready, num_batches)
            return num_batches * len(self.ready)
        parts, num_threads = self.ready.tensor_split(len(self.copies)), torch.get_num_threads()

        def run(network: nn.Module, part: Tensor) -> None:
            torch.set_num_threads(num_threads // len(parts))
            self._forward(network, part, num_batches)

        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(run, self.copies, parts))
        torch.set_num_threads(num_threads)
        return num_batches * len(self.ready)

    @torch.inference_mode()
    def _forward(self, network: nn.Module, images: Tensor, num_batches: int) -> None:
        for _ in range(num_batches):
            with self._device_config.autocast():
                network(images)

    def rate(self) -> float:
        """Measure the patches per second: warm up first, then run for about one second."""
        measure_rate(self, self._device_config)
        rate = measure_rate(self, self._device_config)
        num_batches = max(1, round(rate * _SECONDS / len(self.ready)))
        return measure_rate(partial(self, num_batches), self._device_config)


def best_batch_size(checkpoint: Checkpoint, patches: NDArray, device_config: DeviceConfig) -> int:
    """Find the smallest batch size whose speed is at most 3 % below the highest speed.

    Args:
        checkpoint: Checkpoint with the network.
        patches: Patches, shape (n, H, W, 3), uint8; they are repeated to fill larger batches.
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
