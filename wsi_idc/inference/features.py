"""Features of patches: the pooled output of an encoder, which is the input of the last layer."""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError, DataError
from wsi_idc.core.progress import progress
from wsi_idc.data.augmentation import dihedral
from wsi_idc.data.feature_cache import FeatureCache, open_feature_cache
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import batch_predictor
from wsi_idc.models.cam_layers import novelty_layer, num_channels
from wsi_idc.models.classifier import PatchClassifier, eval_mode
from wsi_idc.models.encoder_source import encoder_digest
from wsi_idc.models.novelty import recorded_statistics
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_WRITES = 2.0
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
        # The hooks need one batch after the other.
        options: Any = {"device_config": config, "batch_size": batch_size, "num_in_flight": 1}
        predict_batches = stack.enter_context(batch_predictor(lambda: [encoder], **options))

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
    return PatchClassifier(
        *(classifier.arch, classifier.network),
        input_px=classifier.input_px,
        mean=mean,
        std=std,
        interpolation=classifier.interpolation,
    )


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
    arch = classifier.arch
    digest = encoder_digest(arch, classifier.network.state_dict())
    mean, std = (x.flatten().tolist() for x in (classifier.mean, classifier.std))
    preprocessing = [classifier.input_px, mean, std, classifier.interpolation]
    digest.update(json.dumps([arch.name, *preprocessing]).encode())
    return str(digest.hexdigest())


def cached_features(
    classifier: PatchClassifier,
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    folder: Path,
    device_config: DeviceConfig,
    view: int = 0,
    batch_size: int = PREDICT_BATCH_SIZE,
    stop: StopRequest | None = None,
) -> FeatureBatch:
    """Return the features of patches of a pack, and the statistics of the novelty model's layer.

    Views other than view 0 have no statistics.

    The values that an earlier call computed with the same encoder are read from a file. All new
    values are written to this file, also before a stop.

    Args:
        classifier: Network with its preprocessing; the values of its last layer have no effect.
        pack: Pack that contains the patches.
        rows: Indices of the patches in the pack, shape (N,).
        folder: Folder of the file.
        device_config: Device and precision.
        view: Element of the symmetry group of the square that changes each patch, 0 to 7, as in
            ``data.augmentation.dihedral``; 0: no change.
        batch_size: Largest number of patches in a batch.
        stop: Request to stop early.

    Raises:
        CheckpointError: The network has no features.
        DataError: The file is damaged.
        StoppedError: A stop was requested.
    """
    patch_px = pack.info.patch_px
    lengths = {"features": num_features(classifier, patch_px)}
    layer = None
    if view == 0:
        layer = novelty_layer(classifier.arch, classifier.input_px or patch_px)
        channels = num_channels(classifier.arch, classifier.input_px or patch_px, layer)
        lengths["statistics"] = 2 * channels
    key = {
        "encoder": encoder_fingerprint(classifier),
        "data": pack.info.source_fingerprint,
        "precision": device_config.precision,
        **({"view": view} if view else {}),
    }
    opened = open_feature_cache(
        *(folder, key),
        num_rows=len(pack),
        lengths=lengths,
        on_wait=lambda: raise_if_stopped(stop),
    )
    with opened as cache:
        missing = np.sort(cache.missing(rows))
        num_done, suffix = 0, f" of view {view + 1}" if view else ""
        if len(missing):
            options: Any = {"device_config": device_config, "batch_size": batch_size}
            with feature_extractor(classifier, statistics_layer=layer, **options) as extract:
                parts = (missing[i : i + batch_size] for i in range(0, len(missing), batch_size))
                batches = extract(parts, partial(_read_view, pack, view))
                num_done = _store(batches, cache, missing, stop, what=f"features{suffix}")
        num_read = len(rows) - len(missing)
        counts = (suffix, num_done, num_read, cache.path)
        logger.info("features%s: %d computed, %d read from %s", *counts)
        if num_done < len(missing):
            state = f" after the features of {num_done} of {len(missing)} patches, which are kept"
            raise_if_stopped(stop, state)
        stored = FeatureBatch(*(cache.read(name, rows) for name in lengths))
    if not np.isfinite(stored.features).all():  # a prediction of such features raises an error
        raise DataError(f"{cache.path} is damaged: a feature is not a finite number; delete it")
    return stored


def _read_view(pack: Pack, view: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    patches = pack.read(rows)
    if view == 0:
        return patches
    images = torch.from_numpy(patches).permute(0, 3, 1, 2)
    turned = dihedral(images, torch.full((len(images),), view))
    return turned.permute(0, 2, 3, 1).contiguous().numpy()


def _store(
    batches: Generator[FeatureBatch, None, None],
    cache: FeatureCache,
    rows: NDArray[np.int64],
    stop: StopRequest | None,
    *,
    what: str,
) -> int:
    """Write batches of the patches ``rows`` to a cache until a stop; return the number written."""
    pending: list[FeatureBatch] = []
    num_written, last_write = 0, time.monotonic()
    with closing(batches), progress(len(rows), what=what) as bar:
        for batch in batches:
            pending.append(batch)
            bar.update(len(batch.features))
            num_pending = sum(len(each.features) for each in pending)
            is_last = num_written + num_pending == len(rows)
            is_stopped = bool(stop)
            if is_last or is_stopped or time.monotonic() - last_write > _SECONDS_BETWEEN_WRITES:
                features, statistics = zip(*pending, strict=True)
                values = {"features": np.concatenate(features)}
                if statistics[0] is not None:
                    values["statistics"] = np.concatenate(statistics)
                cache.write(rows[num_written : num_written + num_pending], **values)
                num_written += num_pending
                pending, last_write = [], time.monotonic()
            if is_stopped:
                break
    return num_written
