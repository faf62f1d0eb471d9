"""Prediction of batches of patches; a background thread reads the next batch."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import INVERSE_DIHEDRAL, NUM_DIHEDRAL, dihedral
from wsi_idc.data.pack import Pack
from wsi_idc.data.patch_flags import patch_flags
from wsi_idc.models.batch_norm import fuse_batch_norm
from wsi_idc.models.cam import CamSpec, cam_extractor, cam_of_head
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.models.novelty import map_statistics, recorded_statistics
from wsi_idc.runtime.device import DeviceConfig, oom_as_error
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.transfer import DeviceTensor, DeviceTransfer, PendingResult

logger = logging.getLogger(__name__)

# Function that takes patches on the device. It returns logits (n, num_classes), the CAM (n, h, w)
# or None, and the distance (n,) or None.
ForwardFn = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]

# A batch is padded to a multiple of this size. Otherwise, the last digits of the logits would
# depend on the size of the batch, because devices compute small batches in another way.
_BATCH_MULTIPLE = 16


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
        options: Arguments ``device_config``, ``cam``, ``tta``, ``flag_mpp`` of ``batch_predictor``.
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
    """
    networks: list[ForwardFn] = []
    views, meter = range(NUM_DIHEDRAL if tta else 1), device_config.throughput

    def predict_batches(
        items: Iterable[NDArray], read: ReadFn | None = None
    ) -> Generator[RawPrediction, None, None]:
        if not networks:
            networks.extend(_build_forward(m, device_config, cam, stack) for m in build())
        transfer = DeviceTransfer(device_config.device)

        def load(item: NDArray) -> tuple[DeviceTensor, int, NDArray[np.uint8] | None]:
            patches = item if read is None else read(item)
            flags = None if flag_mpp is None else patch_flags(patches, mpp=flag_mpp)
            return *_pad_batch(patches, transfer, device_config, batch_size), flags

        # A thread reads the next batch and computes its flags while the device computes.
        in_thread = read is not None or flag_mpp is not None
        batches = prefetch(load, items) if in_thread else map(load, items)
        # The device computes a batch while the caller uses the results of the previous batch.
        pending: list[tuple[list[bool], PendingResult, int, NDArray[np.uint8] | None]] = []
        for padded, num, flags in meter.time_data_wait(batches):
            with meter.time_compute(num), oom_as_error(num, device_config.device):
                outputs = _forward(networks, padded.get(), device_config, views=views)
            present = [output is not None for output in outputs]
            result = transfer.download([output for output in outputs if output is not None])
            pending.append((present, result, num, flags))
            if len(pending) > 1:
                yield _to_numpy(*pending.pop(0))
        for entry in pending:
            yield _to_numpy(*entry)

    with ExitStack() as stack:
        yield predict_batches


def predict_logits(
    classifier: PatchClassifier, pack: Pack, rows: NDArray[np.int64], **options: Any
) -> NDArray[np.float32]:
    """Return the logits of patches, shape (N, num_classes).

    ``options`` are keyword arguments of the function ``predict``.
    """
    parts = predict([classifier], pack, rows, **options)
    empty = np.empty((0, len(pack.info.class_names)), np.float32)
    return np.concatenate([empty, *(part.logit[:, 0] for part in parts)])


def _build_forward(
    classifier: PatchClassifier, device_config: DeviceConfig, cam: CamSpec | None, stack: ExitStack
) -> ForwardFn:
    """Build a function that runs a classifier on a batch; closing ``stack`` removes the hooks."""
    cam = None if cam is None else cam.resolve(classifier)
    with oom_as_error("the model; end other programs that use it", device_config.device):
        classifier.eval().to(device_config.device)
        # Do not fuse the layer of the CAM, because the CAM needs its original output.
        fused = fuse_batch_norm(classifier, keep=None if cam is None else cam.layer)
        fused.to(memory_format=torch.channels_last)
    if device_config.compiled and can_compile(fused, cam):
        return compile_predictor(fused, cam)
    if device_config.compiled:
        logger.info(
            "%s is not compiled: --compile supports only networks of torchvision and this program "
            "that end with average pooling and one linear layer, and only Grad-CAM at the last "
            "feature map",
            fused.arch.name,
        )
    if cam is None:
        forward: Any = lambda patches: (fused(patches).float(), None)  # noqa: E731
    else:
        forward = stack.enter_context(cam_extractor(fused, **vars(cam)))
    if fused.novelty is None:
        return lambda patches: (*forward(patches), None)
    novelty = fused.novelty.to(device_config.device)
    recorded = stack.enter_context(recorded_statistics(fused.network, novelty.layer))

    def forward_with_distance(patches: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        recorded.clear()
        logits, cams = forward(patches)
        # Element 0 belongs to the patches; smoothgradcam++ also records noisy images, but later.
        return logits, cams, novelty.distance(recorded[0])

    return forward_with_distance


def can_compile(classifier: PatchClassifier, cam: CamSpec | None) -> bool:
    """Return whether ``compile_predictor`` supports the classifier together with the CAM."""
    arch = classifier.arch
    is_last_map = cam is None or (cam.method == "gradcam" and cam.layer in (None, arch.cam_layer))
    return arch.closed_form and is_last_map and not arch.prefix


def compile_predictor(classifier: PatchClassifier, cam: CamSpec | None) -> ForwardFn:
    """Return a compiled function that computes the logits, CAMs and distances of a batch.

    The first call compiles the function. A new batch size compiles the function again, so all
    batches should have the same size.

    Args:
        classifier: Classifier in eval mode, on the device that will run it.
        cam: CAM for which ``can_compile`` returns True; None: no CAM.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    arch, novelty = classifier.arch, classifier.novelty
    if novelty is not None:
        novelty = novelty.to(classifier.mean.device)
    # This extractor returns the feature maps without a hook: a hook would split the compiled graph.
    nodes = [arch.cam_layer, arch.head, *([novelty.layer] if novelty else [])]
    network = create_feature_extractor(
        classifier.network,
        {name: name for name in nodes},
        tracer_kwargs={"leaf_modules": [nn.Conv2d]},
    ).eval()

    def forward(patches: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        outputs = network(classifier.preprocess(patches))
        logits, cams, distance = outputs[arch.head].flatten(1).float(), None, None
        if cam is not None:
            cams = cam_of_head(outputs[arch.cam_layer], classifier.head.weight[cam.class_index])
        if novelty is not None:
            distance = novelty.distance(map_statistics(outputs[novelty.layer]))
        return logits, cams, distance

    # torch compiles the same code object at most eight times, and an ensemble may have more
    # networks. So each network gets its own copy of the code object.
    own_code = FunctionType(forward.__code__.replace(), globals(), closure=forward.__closure__)
    # dynamic=False: otherwise, torch would compile slower code at the second batch size.
    return torch.no_grad()(torch.compile(own_code, dynamic=False))


@torch.inference_mode()
def _forward(
    networks: Sequence[ForwardFn], patches: Tensor, device_config: DeviceConfig, *, views: range
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run all networks on all views of a batch.

    The results are logits, mean CAMs and distances, as in ``RawPrediction``.
    """
    logits, cams, distances = [], [], []
    for network in networks:
        for view in views:
            seen = patches if view == 0 else _apply_view(to_images(patches), view)
            with device_config.autocast():
                logit, cam, distance = network(seen)
            logits.append(logit)
            if cam is not None:
                cams.append(_apply_view(cam[:, None], INVERSE_DIHEDRAL[view])[:, 0])
            if distance is not None and view == 0:
                distances.append(distance)
    mean_cam = _mean_cam(cams) if cams else None
    return torch.stack(logits, 1), mean_cam, torch.stack(distances, 1) if distances else None


def _apply_view(images: Tensor, view: int) -> Tensor:
    """Flip or turn images (n, C, H, H); ``view`` is the number of one of the 8 views."""
    if view == 0:
        return images
    turned = dihedral(images, torch.full((len(images),), view))
    return turned.contiguous(memory_format=torch.channels_last)


def _mean_cam(cams: Sequence[Tensor]) -> Tensor:
    """Resize all CAMs (n, h, w) to the size of the first CAM; return their mean."""
    size, resized = cams[0].shape[1:], []
    for cam in cams:
        if (own_size := cam.shape[1:]) != size:
            cam = F.interpolate(cam[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
            cam = cam * (own_size.numel() / size.numel())  # smaller cells have smaller values
        resized.append(cam)
    return torch.stack(resized).mean(dim=0)


def _to_numpy(
    present: Sequence[bool], result: PendingResult, num: int, flags: NDArray[np.uint8] | None
) -> RawPrediction:
    """Convert the outputs of ``_forward`` for a batch into a prediction.

    Args:
        present: For each output of ``_forward``, whether the output exists.
        result: Outputs that exist, for a padded batch.
        num: Number of patches in the batch, without the padding.
        flags: Quality flags of the patches, or None.
    """
    arrays = iter(result.arrays())
    outputs: list[Any] = [next(arrays)[:num] if here else None for here in present]
    # NaN is not accepted, because in a map NaN marks a cell without a patch.
    if not np.isfinite(outputs[0]).all():
        raise CheckpointError(
            "the model gives logits that are not finite; use --precision fp32, or train it again"
        )
    logits, cams, distances = outputs
    return RawPrediction(logits, cams, distances, flags)


def _pad_batch(
    patches: NDArray[np.uint8], transfer: DeviceTransfer, config: DeviceConfig, batch_size: int
) -> tuple[DeviceTensor, int]:
    """Pad a batch with copies of its first patch, and upload the batch to the device.

    Return the padded batch and the number of patches without the padding.
    """
    # For a compiled network, all batches must have the same size.
    num, full = len(patches), -(-batch_size // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
    padding = -num % (full if config.compiled else _BATCH_MULTIPLE)
    padded = np.concatenate([patches, patches[:1].repeat(padding, axis=0)]) if padding else patches
    with oom_as_error(num, transfer.device):
        return transfer.upload(padded), num
