"""Run classifiers on batches of patches while the next batch is being read."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import NUM_DIHEDRAL, dihedral
from wsi_idc.data.pack import Pack
from wsi_idc.models.batch_norm import fuse_batch_norm
from wsi_idc.models.cam import CamSpec, cam_extractor, cam_of_head
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.runtime.device import DeviceConfig, oom_as_error
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.runtime.transfer import DeviceTensor, DeviceTransfer, PendingResult

logger = logging.getLogger(__name__)

# From patches on the device to logits (n, num_classes) and CAM (n, h, w), or None without a CAM.
ForwardFn = Callable[[Tensor], tuple[Tensor, Tensor | None]]

# A batch is padded to a multiple of this size: other kernels compute smaller batches, so the last
# digits of a patch's logits would depend on the number of patches beside it.
_BATCH_MULTIPLE = 16
# Inverse of each view: a quarter turn is undone by the opposite one, a flip with a turn by itself.
_INVERSE_VIEW = (0, 3, 2, 1, 4, 5, 6, 7)


@dataclass(frozen=True)
class RawPrediction:
    """Logits and CAMs of consecutive patches, before calibration.

    Attributes:
        logit: Logits of each classifier on each view, all views of a classifier together, shape
            (n, k, num_classes), float32.
        cam: Raw CAM, the mean over views and classifiers, shape (n, h, w), float32; None if no CAM
            was requested.
    """

    logit: NDArray[np.float32]
    cam: NDArray[np.float32] | None

    def part(self, start: int, end: int) -> "RawPrediction":
        """Return the prediction of the patches ``start`` to ``end``."""
        cam = None if self.cam is None else self.cam[start:end]
        return RawPrediction(self.logit[start:end], cam)

    @staticmethod
    def concatenate(parts: Sequence["RawPrediction"]) -> "RawPrediction":
        """Concatenate the predictions of consecutive parts."""
        logits = np.concatenate([part.logit for part in parts])
        cams = [part.cam for part in parts if part.cam is not None]
        return RawPrediction(logits, np.concatenate(cams) if cams else None)


# From batches of patches (n, H, W, 3), uint8, to their predictions.
BatchPredictor = Callable[[Iterable[NDArray[np.uint8]]], Generator[RawPrediction, None, None]]


def predict(
    classifiers: Sequence[PatchClassifier],
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    cam: CamSpec | None = None,
    tta: bool = False,
) -> Generator[RawPrediction, None, None]:
    """Yield predictions of the pack's patches ``rows``, in their order, one batch at a time.

    The classifiers are put into eval mode and stay in it.

    Args:
        classifiers: Classifiers that each predict every patch.
        pack: Pack that holds the patches.
        rows: Indices of the patches in the pack, shape (N,).
        device_config: Device and precision.
        batch_size: Number of patches in a batch.
        cam: CAM to compute; None computes none.
        tta: Whether to predict each patch in its 8 flips and quarter turns.
    """
    transfer = DeviceTransfer(device_config.device)
    batches = prefetch(
        lambda batch_rows: _pad_batch(pack.read(batch_rows), transfer, device_config, batch_size),
        (rows[start : start + batch_size] for start in range(0, len(rows), batch_size)),
    )
    with ExitStack() as stack:
        networks = [_build_forward(model, device_config, cam, stack) for model in classifiers]
        yield from _predict(networks, batches, transfer, device_config=device_config, tta=tta)


@contextmanager
def batch_predictor(
    build: Callable[[], Sequence[PatchClassifier]],
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    cam: CamSpec | None = None,
    tta: bool = False,
) -> Iterator[BatchPredictor]:
    """Context manager that yields a function predicting batches of patches.

    The classifiers come from ``build``; they are built, and compiled, at the first batch and reused
    for every slide. The other arguments are those of ``predict``; no batch exceeds ``batch_size``.
    """
    networks: list[ForwardFn] = []
    with ExitStack() as stack:

        def predict_batches(
            patches: Iterable[NDArray[np.uint8]],
        ) -> Generator[RawPrediction, None, None]:
            if not networks:
                networks.extend(_build_forward(m, device_config, cam, stack) for m in build())
            transfer = DeviceTransfer(device_config.device)
            batches = (_pad_batch(batch, transfer, device_config, batch_size) for batch in patches)
            yield from _predict(networks, batches, transfer, device_config=device_config, tta=tta)

        yield predict_batches


def predict_logits(
    classifiers: Sequence[PatchClassifier],
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    device_config: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    tta: bool = False,
) -> NDArray[np.float32]:
    """Return the logits, shape (N, k, num_classes), of the pack's patches ``rows``."""
    parts = predict(
        classifiers, pack, rows, device_config=device_config, batch_size=batch_size, tta=tta
    )
    num_logits = len(classifiers) * (NUM_DIHEDRAL if tta else 1)
    empty = np.empty((0, num_logits, len(pack.info.class_names)), np.float32)
    return np.concatenate([empty, *(part.logit for part in parts)])


def _predict(
    networks: Sequence[ForwardFn],
    batches: Iterable[tuple[DeviceTensor, int]],
    transfer: DeviceTransfer,
    *,
    device_config: DeviceConfig,
    tta: bool,
) -> Generator[RawPrediction, None, None]:
    views, meter = range(NUM_DIHEDRAL if tta else 1), device_config.throughput
    # The device computes one batch while the caller uses the results of the one before.
    pending: tuple[PendingResult, int] | None = None
    for patches, num in meter.time_data_wait(batches):
        with meter.time_compute(num), oom_as_error(num, device_config.device):
            logit, cam = _forward(networks, patches.get(), device_config, views=views)
        result = transfer.download([logit] if cam is None else [logit, cam])
        if pending is not None:
            yield _to_numpy(*pending)
        pending = result, num
    if pending is not None:
        yield _to_numpy(*pending)


def _build_forward(
    classifier: PatchClassifier, device_config: DeviceConfig, cam: CamSpec | None, stack: ExitStack
) -> ForwardFn:
    """Build the function that runs a classifier on a batch; ``stack`` removes its hooks."""
    cam = None if cam is None else cam.resolve(classifier)
    with oom_as_error("the model; end what else uses it", device_config.device):
        classifier.eval().to(device_config.device)
        # The output of a convolution that a CAM is taken from must not change.
        fused = fuse_batch_norm(classifier, keep=None if cam is None else cam.layer)
        fused.to(memory_format=torch.channels_last)
    if device_config.compiled and can_compile(fused, cam):
        return compile_predictor(fused, cam)
    if device_config.compiled:
        logger.info("%s is not compiled: that needs a Grad-CAM in closed form", fused.arch.name)
    if cam is None:
        return lambda patches: (fused(patches).float(), None)
    return stack.enter_context(cam_extractor(fused, **vars(cam)))


def can_compile(classifier: PatchClassifier, cam: CamSpec | None) -> bool:
    """Return whether ``compile_predictor`` supports this network with this CAM."""
    arch = classifier.arch
    is_last_map = cam is None or (cam.method == "gradcam" and cam.layer in (None, arch.cam_layer))
    return arch.closed_form and is_last_map


def compile_predictor(classifier: PatchClassifier, cam: CamSpec | None) -> ForwardFn:
    """Return a function like that of ``cam_extractor``, compiled at its first batch.

    Each new batch size is compiled again, so use one size only.

    Args:
        classifier: Classifier in eval mode, on its final device.
        cam: CAM that ``can_compile`` accepts; None computes none.
    """
    arch = classifier.arch
    # Without hooks, which would break the graph in two.
    network = create_feature_extractor(
        classifier.network,
        {arch.cam_layer: "features", arch.head: "logits"},
        tracer_kwargs={"leaf_modules": [nn.Conv2d]},
    ).eval()

    def forward(patches: Tensor) -> tuple[Tensor, Tensor | None]:
        images = to_images(patches) if patches.dtype == torch.uint8 else patches
        outputs = network(classifier.preprocess(images))
        logits = outputs["logits"].flatten(1).float()
        if cam is None:
            return logits, None
        return logits, cam_of_head(outputs["features"], classifier.head.weight[cam.class_index])

    # torch compiles one code object at most eight times; a larger ensemble needs one for each.
    own_code = FunctionType(forward.__code__.replace(), globals(), closure=forward.__closure__)
    # At a second size torch would switch to code for any size, which is slower.
    return torch.no_grad()(torch.compile(own_code, dynamic=False))


@torch.inference_mode()
def _forward(
    networks: Sequence[ForwardFn], patches: Tensor, device_config: DeviceConfig, *, views: range
) -> tuple[Tensor, Tensor | None]:
    """Return logits (n, k, num_classes) and CAM (n, h, w) of patches (n, H, W, 3)."""
    logits, cams = [], []
    for network in networks:
        for view in views:
            seen = patches if view == 0 else _apply_view(to_images(patches), view)
            with device_config.autocast():
                logit, cam = network(seen)
            logits.append(logit)
            if cam is not None:
                cams.append(_apply_view(cam[:, None], _INVERSE_VIEW[view])[:, 0])
    return torch.stack(logits, dim=1), _mean_cam(cams) if cams else None


def _apply_view(images: Tensor, view: int) -> Tensor:
    """Flip and turn all images (n, C, H, H) into one of the 8 views."""
    if view == 0:
        return images
    turned = dihedral(images, torch.full((len(images),), view))
    return turned.contiguous(memory_format=torch.channels_last)


def _mean_cam(cams: Sequence[Tensor]) -> Tensor:
    """Average CAMs (n, h, w) on the grid of the first one."""
    size, resized = cams[0].shape[1:], []
    for cam in cams:
        if (own_size := cam.shape[1:]) != size:
            cam = F.interpolate(cam[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
            cam = cam * (own_size.numel() / size.numel())  # a finer cell holds less of the logit
        resized.append(cam)
    return torch.stack(resized).mean(dim=0)


def _to_numpy(result: PendingResult, num: int) -> RawPrediction:
    logit, *cam = (array[:num] for array in result.arrays())
    # In a map, NaN means that there is no patch.
    if not np.isfinite(logit).all():
        raise CheckpointError(
            "the model gives logits that are not finite; use --precision fp32 or train it again"
        )
    return RawPrediction(logit, cam[0] if cam else None)


def _pad_batch(
    patches: NDArray[np.uint8], transfer: DeviceTransfer, config: DeviceConfig, batch_size: int
) -> tuple[DeviceTensor, int]:
    """Send patches (n, H, W, 3) to the device, padded; return them and n."""
    # A compiled network needs one size.
    num, full = len(patches), -(-batch_size // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
    padding = -num % (full if config.compiled else _BATCH_MULTIPLE)
    padded = np.concatenate([patches, patches[:1].repeat(padding, axis=0)]) if padding else patches
    with oom_as_error(num, transfer.device):
        return transfer.upload(padded), num
