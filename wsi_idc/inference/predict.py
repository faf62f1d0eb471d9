"""Prediction of batches of patches; a background thread reads the next batch."""

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import NUM_DIHEDRAL
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_flags import patch_flags
from wsi_idc.inference.forward import (
    BATCH_MULTIPLE,
    batches_in_flight,
    build_forward,
    forward_views,
)
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.runtime.device import DeviceConfig, oom_as_error
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.transfer import DeviceTensor, DeviceTransfer, PendingResult


@dataclass(frozen=True)
class RawPrediction:
    """Logits and CAMs of consecutive patches, before calibration.

    Attributes:
        logit: Logits of each classifier for each view, shape (n, k, num_classes), float32. k is
            the number of classifiers times the number of views; the views of the first classifier
            come first.
        cam: Mean raw CAM of all views and classifiers, shape (n, h, w), float32; None: no CAM.
        distance: Distance of each patch from the train patches of a classifier, shape (n, m),
            float32. There is one column per classifier with a novelty model; None if no classifier
            has a novelty model.
        flags: Quality flags of each patch, as in ``patch_flags``; None: not computed.
    """

    logit: NDArray[np.float32]
    cam: NDArray[np.float32] | None
    distance: NDArray[np.float32] | None = None
    flags: NDArray[np.uint8] | None = None

    def part(self, start: int, end: int) -> "RawPrediction":
        """Return the prediction of the patches ``start`` to ``end - 1``."""
        parts: list[Any] = [x if x is None else x[start:end] for x in self._arrays()]
        return RawPrediction(*parts)

    @staticmethod
    def concatenate(parts: Iterable["RawPrediction"], bar: Any = None) -> "RawPrediction":
        """Join predictions of consecutive patches; ``bar`` is a progress bar of the patches."""
        arrays = []
        for part in parts:
            arrays.append(part._arrays())
            if bar is not None:
                bar.update(len(part.logit))
        columns = zip(*arrays, strict=True)
        joined: list[Any] = [None if c[0] is None else np.concatenate(c) for c in columns]
        return RawPrediction(*joined)

    def _arrays(self) -> tuple[Any, ...]:
        return self.logit, self.cam, self.distance, self.flags


ReadFn = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
# Function that takes batches of patches (n, H, W, 3), uint8, and yields their predictions. With a
# ``ReadFn``, it takes batches of row numbers, and reads their patches in the background.
BatchPredictor = Callable[..., Generator[RawPrediction, None, None]]
# Function that computes the outputs of ``forward_views`` for patches on the device.
_ForwardFn = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]


def predict(
    classifiers: Sequence[PatchClassifier],
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    batch_size: int = PREDICT_BATCH_SIZE,
    **options: Any,
) -> Generator[RawPrediction, None, None]:
    """Predict patches of a pack in the order of ``rows``; yield the prediction of each batch.

    The next batch is read in the background. The classifiers stay in eval mode afterwards.

    Args:
        classifiers: Classifiers; each of them predicts every patch.
        pack: Pack that contains the patches.
        rows: Indices of the patches in the pack, shape (N,).
        batch_size: Number of patches in a batch.
        options: Other arguments of ``batch_predictor``.
    """
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    with batch_predictor(lambda: classifiers, batch_size=batch_size, **options) as predict_batches:
        yield from predict_batches(parts, read=pack.read)


@contextmanager
def batch_predictor(
    build: Callable[[], Sequence[PatchClassifier]],
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    cam: CamSpec | None = None,
    tta: bool = False,
    flag_mpp: float | None = None,
    num_in_flight: int | None = None,
) -> Iterator[BatchPredictor]:
    """Context manager that yields a function, which predicts batches of patches.

    The function can be called for several slides. Its first call builds the classifiers.

    Args:
        build: Function that builds the classifiers; each of them predicts every patch.
        device_config: Device and precision.
        batch_size: Largest number of patches in a batch.
        cam: CAM to compute; None: no CAM.
        tta: Whether to predict all 8 views of each patch (its flips and quarter turns).
        flag_mpp: Microns per px of the patches, to compute their quality flags; None: no flags.
        num_in_flight: Number of batches that are computed at the same time; None: the number that
            the function ``batches_in_flight`` chooses. The number must be 1 if the caller has added
            hooks to a network, because several threads would call the hooks.
    """
    num_copies = num_in_flight or batches_in_flight(device_config, batch_size)
    views = range(NUM_DIHEDRAL if tta else 1)
    copies: list[_ForwardFn] = []

    def predict_batches(
        items: Iterable[NDArray], read: ReadFn | None = None
    ) -> Generator[RawPrediction, None, None]:
        if not copies:
            options: Any = {"device_config": device_config, "cam": cam, "stack": stack}
            networks = [build_forward(m, num_copies=num_copies, **options) for m in build()]
            copies.extend(
                functools.partial(forward_views, each, device_config=device_config, views=views)
                for each in zip(*networks, strict=True)
            )
        reader = _Reader(device_config, batch_size, read=read, flag_mpp=flag_mpp)
        if len(copies) == 1:
            yield from _predict_in_turn(copies[0], items, reader)
        else:
            yield from _predict_in_threads(copies, items, reader)

    with ExitStack() as stack:
        yield predict_batches


@dataclass(frozen=True)
class _Batch:
    """A batch: padded patches on the device, number of patches, and their flags."""

    patches: DeviceTensor
    num: int
    flags: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Reader:
    """Function that reads a batch, computes its flags and uploads its patches to the device."""

    device_config: DeviceConfig
    batch_size: int
    read: ReadFn | None
    flag_mpp: float | None

    @functools.cached_property
    def transfer(self) -> DeviceTransfer:
        return DeviceTransfer(self.device_config.device)

    def __call__(self, item: NDArray) -> _Batch:
        patches = item if self.read is None else self.read(item)
        flags = None if self.flag_mpp is None else patch_flags(patches, mpp=self.flag_mpp)
        # For a compiled network, all batches must have the same size.
        num, full = len(patches), -(-self.batch_size // BATCH_MULTIPLE) * BATCH_MULTIPLE
        padding = -num % (full if self.device_config.compiled else BATCH_MULTIPLE)
        if padding:
            patches = np.concatenate([patches, patches[:1].repeat(padding, axis=0)])
        with oom_as_error(num, self.device_config.device):
            return _Batch(self.transfer.upload(patches), num, flags)


def _predict_in_turn(
    forward: _ForwardFn, items: Iterable[NDArray], reader: _Reader
) -> Iterator[RawPrediction]:
    """Predict one batch after the other, each with all threads of the device."""
    device, meter = reader.device_config.device, reader.device_config.throughput
    # A thread reads the next batch and computes its flags while the device computes.
    in_thread = reader.read is not None or reader.flag_mpp is not None
    batches = prefetch(reader, items) if in_thread else map(reader, items)
    # The device computes a batch while the caller uses the results of the previous batch.
    pending: deque[tuple[_Batch, list[bool], PendingResult]] = deque()

    def finish(batch: _Batch, present: list[bool], result: PendingResult) -> RawPrediction:
        arrays = iter(result.arrays())
        return _to_prediction(batch, [next(arrays) if here else None for here in present])

    for batch in meter.time_data_wait(batches):
        with meter.time_compute(batch.num), oom_as_error(batch.num, device):
            outputs = forward(batch.patches.get())
        present = [output is not None for output in outputs]
        result = reader.transfer.download([output for output in outputs if output is not None])
        pending.append((batch, present, result))
        if len(pending) > 1:
            yield finish(*pending.popleft())
    for entry in pending:
        yield finish(*entry)


def _predict_in_threads(
    copies: Sequence[_ForwardFn], items: Iterable[NDArray], reader: _Reader
) -> Iterator[RawPrediction]:
    """Predict several batches at the same time on a CPU; each copy of the networks has a thread."""
    meter, num_copies = reader.device_config.throughput, len(copies)
    num_threads = torch.get_num_threads()
    # A batch is computed in parts, so that all threads together need the memory of one batch.
    part_size = reader.batch_size // num_copies // BATCH_MULTIPLE * BATCH_MULTIPLE
    idle: SimpleQueue[_ForwardFn] = SimpleQueue()
    for forward in copies:
        idle.put(forward)

    def predict_batch(item: NDArray) -> RawPrediction:
        torch.set_num_threads(num_threads // num_copies)
        with meter.time_data_read(share=1 / num_copies):
            batch = reader(item)
        forward = idle.get()
        try:
            with (
                meter.time_compute(batch.num, share=1 / num_copies),
                oom_as_error(batch.num, reader.device_config.device),
            ):
                parts = [forward(part) for part in batch.patches.get().split(part_size)]
        finally:
            idle.put(forward)
        columns = zip(*parts, strict=True)
        return _to_prediction(
            batch, [None if c[0] is None else torch.cat(c).numpy() for c in columns]
        )

    try:
        # The queue is longer than the number of threads: a thread must not wait for the caller.
        yield from prefetch(
            predict_batch, meter.time_data_wait(items), num=num_copies, num_ahead=2 * num_copies
        )
    finally:
        torch.set_num_threads(num_threads)  # the threads also set the number for new threads


def predict_logits(
    classifier: PatchClassifier, pack: Pack, rows: NDArray[np.int64], **options: Any
) -> NDArray[np.float32]:
    """Return the logits of patches, shape (N, num_classes).

    ``options`` are keyword arguments of the function ``predict``.
    """
    parts = predict([classifier], pack, rows, **options)
    empty = np.empty((0, len(pack.info.class_names)), np.float32)
    return np.concatenate([empty, *(part.logit[:, 0] for part in parts)])


def _to_prediction(batch: _Batch, outputs: Sequence[NDArray | None]) -> RawPrediction:
    """Convert the logits, CAMs and distances of a padded batch into a prediction."""
    logits, cams, distances = (None if x is None else x[: batch.num] for x in outputs)
    # NaN is not accepted, because in a map NaN marks a cell without a patch.
    if logits is None or not np.isfinite(logits).all():
        raise CheckpointError(
            "the model gives logits that are not finite; use --precision fp32, or train it again"
        )
    return RawPrediction(logits, cams, distances, batch.flags)
