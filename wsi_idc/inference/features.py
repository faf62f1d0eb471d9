"""Features of patches: the pooled output of an encoder, which is the input of the last layer."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.inference.predict import batch_predictor
from wsi_idc.models.classifier import PatchClassifier, eval_mode
from wsi_idc.models.novelty import recorded_statistics
from wsi_idc.runtime.device import DeviceConfig

# Function that takes batches of patches, or batches of row numbers and a function that reads them,
# as ``inference.predict.BatchPredictor`` does.
ExtractFeatures = Callable[..., Generator["FeatureBatch", None, None]]


class FeatureBatch(NamedTuple):
    """Features of consecutive patches.

    Attributes:
        features: Input of the last layer, shape (n, D), float32.
        statistics: Values of ``models.novelty.map_statistics`` of the layer that the caller chose,
            shape (n, S), float32; None if the caller chose no layer.
    """

    features: NDArray[np.float32]
    statistics: NDArray[np.float32] | None = None


@contextmanager
def feature_extractor(
    classifier: PatchClassifier,
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    statistics_layer: str | None = None,
) -> Iterator[ExtractFeatures]:
    """Context manager that yields a function, which computes the features of batches of patches.

    The function can be called for several slides. The classifier stays in eval mode afterwards.

    Args:
        classifier: Network with its preprocessing; the values of its last layer have no effect.
        device_config: Device and precision. The network is not compiled.
        batch_size: Largest number of patches in a batch.
        statistics_layer: Layer of the statistics; None: no statistics.
    """
    encoder, config = _without_novelty(classifier), replace(device_config, compiled=False)
    with ExitStack() as stack:
        features = stack.enter_context(_recorded_features(encoder))
        statistics = None
        if statistics_layer is not None:
            hook = recorded_statistics(encoder.network, statistics_layer)
            statistics = stack.enter_context(hook)
        predict_batches = stack.enter_context(
            batch_predictor(lambda: [encoder], device_config=config, batch_size=batch_size)
        )

        def extract(items: Any, read: Any = None) -> Generator[FeatureBatch, None, None]:
            features.clear()
            for prediction in predict_batches(items, read):
                # Remove the padding of the batch. Element 1 may be the next batch.
                num = len(prediction.logit)
                own = _to_numpy(features, num)
                yield FeatureBatch(own, None if statistics is None else _to_numpy(statistics, num))

        yield extract


def _without_novelty(classifier: PatchClassifier) -> PatchClassifier:
    mean, std = (tuple(x.flatten().tolist()) for x in (classifier.mean, classifier.std))
    arch, network, input_px = classifier.arch, classifier.network, classifier.input_px
    return PatchClassifier(arch, network, input_px=input_px, mean=mean, std=std)


def _to_numpy(recorded: list[Tensor], num: int) -> NDArray[np.float32]:
    return recorded.pop(0)[:num].cpu().numpy()


@contextmanager
def _recorded_features(classifier: PatchClassifier) -> Iterator[list[Tensor]]:
    """Context manager that yields a list; each forward pass appends the features of a batch."""
    recorded: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], Tensor):  # not for the placeholders of torch.fx
            recorded.append(inputs[0].detach().flatten(1).float())

    head = classifier.network.get_submodule(classifier.arch.head)
    with head.register_forward_pre_hook(record):
        yield recorded


def num_features(classifier: PatchClassifier, patch_px: int) -> int:
    """Return the number of features of a patch.

    Raises:
        CheckpointError: The last layer is not a linear layer after the pooling.
    """
    device = classifier.mean.device
    patch = torch.zeros(1, patch_px, patch_px, 3, dtype=torch.uint8, device=device)
    with eval_mode(classifier), torch.inference_mode(), _recorded_features(classifier) as recorded:
        classifier(patch)
    size = classifier.head.weight[0].numel()
    if len(recorded) == 1 and recorded[0].shape == (1, size):
        return size
    raise CheckpointError(
        f"{classifier.arch.name} has no linear layer after its pooling, so it has no features; "
        "choose another model"
    )


def encoder_fingerprint(classifier: PatchClassifier) -> str:
    """Return the SHA-256 of the values on which the features depend.

    These values are the weights of all layers except the last layer, and the preprocessing.
    """
    arch, digest = classifier.arch, hashlib.sha256()
    for name, value in sorted(classifier.network.state_dict().items()):
        if not name.startswith(f"{arch.head}."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    mean, std = (x.flatten().tolist() for x in (classifier.mean, classifier.std))
    digest.update(json.dumps([arch.name, classifier.input_px, mean, std]).encode())
    return digest.hexdigest()
