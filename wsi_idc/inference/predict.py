"""Run classifiers over patches of a pack, in batches, while the next ones are being read."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import NUM_DIHEDRAL, dihedral
from wsi_idc.data.pack import Pack
from wsi_idc.models.batch_norm import fuse_batch_norm
from wsi_idc.models.cam import CamSpec, cam_extractor
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.models.compile import can_compile, compile_predictor
from wsi_idc.runtime.device import DeviceConfig, oom_as_error
from wsi_idc.runtime.prefetch import prefetch_one
from wsi_idc.runtime.transfer import DeviceTensor, DeviceTransfer, PendingResult

logger = logging.getLogger(__name__)

# Patches on the device to logits (n, num_classes) and CAM (n, h, w), or None for the latter.
ForwardFn = Callable[[Tensor], tuple[Tensor, Tensor | None]]

# A short last batch is filled up to a multiple of this: a few patches would be computed by other
# kernels, and the same patch would get other last digits in other company.
_PATCHES_AT_LEAST = 16
# Quarter turns are undone by those that complete them; a flip and a turn undo themselves.
_UNDO = (0, 3, 2, 1, 4, 5, 6, 7)


@dataclass(frozen=True)
class RawPrediction:
    """What classifiers say of consecutive patches.

    Attributes:
        logit: Of each classifier on each view, classifiers outermost, shape (n, k, num_classes),
            float32.
        cam: Raw CAM, the mean over views and classifiers, shape (n, h, w), float32; None where not
            asked for.
    """

    logit: NDArray[np.float32]
    cam: NDArray[np.float32] | None

    def part(self, start: int, end: int) -> "RawPrediction":
        """Return what is said of some of the patches."""
        return RawPrediction(
            self.logit[start:end], None if self.cam is None else self.cam[start:end]
        )

    @staticmethod
    def joined(parts: Sequence["RawPrediction"]) -> "RawPrediction":
        """Return what is said of all the patches of the parts, one after another."""
        cams = [part.cam for part in parts if part.cam is not None]
        return RawPrediction(
            np.concatenate([part.logit for part in parts]), np.concatenate(cams) if cams else None
        )


# Batches of patches (n, H, W, 3), uint8, to what is said of them.
PatchPredictor = Callable[[Iterable[NDArray[np.uint8]]], Generator[RawPrediction, None, None]]


@dataclass(frozen=True)
class _Batch:
    """Patches on their way to the device, of which the first ``num`` are asked for."""

    patches: DeviceTensor
    num: int


def predict(
    classifiers: Sequence[PatchClassifier],
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    compute: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    cam: CamSpec | None = None,
    tta: bool = False,
) -> Generator[RawPrediction, None, None]:
    """Yield predictions of the pack's patches ``rows``, in their order, a batch at a time.

    The classifiers are put into eval mode and left in it.

    Args:
        classifiers: All of them see every patch.
        pack: The data.
        rows: Of the patches.
        compute: Device and precision.
        batch_size: Patches at a time.
        cam: Which CAM to compute; None computes none.
        tta: Show each patch in the 8 flips and quarter turns instead of as it is.

    Raises:
        CheckpointError: A logit is not finite.
        DeviceError: The device has too little memory.
    """
    link, multiple = DeviceTransfer(compute.device), _multiple(compute, batch_size)
    batches = prefetch_one(
        lambda some: _pad_batch(pack.read(some), link, multiple=multiple),
        (rows[at : at + batch_size] for at in range(0, len(rows), batch_size)),
    )
    with ExitStack() as stack:
        run = _prepare_networks(classifiers, compute, cam, stack)
        yield from _predict(run, batches, link, compute=compute, tta=tta)


@contextmanager
def batch_predictor(
    build: Callable[[], Sequence[PatchClassifier]],
    *,
    compute: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    cam: CamSpec | None = None,
    tta: bool = False,
) -> Iterator[PatchPredictor]:
    """Lend what predicts batches of patches, of one slide after another; else as ``predict``.

    Networks are built, and compiled, once: when the first of them is asked for.

    Args:
        build: Returns the classifiers.
        compute: Device and precision.
        batch_size: Of the largest batch.
        cam: Which CAM to compute; None computes none.
        tta: Show each patch in 8 views.
    """
    multiple, run = _multiple(compute, batch_size), list[ForwardFn]()
    with ExitStack() as stack:

        def predict_patches(
            patches: Iterable[NDArray[np.uint8]],
        ) -> Generator[RawPrediction, None, None]:
            if not run:
                run[:] = _prepare_networks(build(), compute, cam, stack)
            link = DeviceTransfer(compute.device)
            batches = (_pad_batch(some, link, multiple=multiple) for some in patches)
            yield from _predict(run, batches, link, compute=compute, tta=tta)

        yield predict_patches


def predict_logits(
    classifiers: Sequence[PatchClassifier],
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    compute: DeviceConfig,
    batch_size: int = PREDICT_BATCH_SIZE,
    tta: bool = False,
) -> NDArray[np.float32]:
    """Return the logits, shape (N, k, num_classes), of the pack's patches ``rows``."""
    found = predict(classifiers, pack, rows, compute=compute, batch_size=batch_size, tta=tta)
    num_logits = len(classifiers) * (NUM_DIHEDRAL if tta else 1)
    none = np.empty((0, num_logits, len(pack.info.class_names)), np.float32)
    return np.concatenate([none, *(part.logit for part in found)])


def _predict(
    run: Sequence[ForwardFn],
    batches: Iterable[_Batch],
    link: DeviceTransfer,
    *,
    compute: DeviceConfig,
    tta: bool,
) -> Generator[RawPrediction, None, None]:
    views = range(NUM_DIHEDRAL if tta else 1)
    # One batch is under way on the device while the last one's results are used.
    under_way: tuple[PendingResult, int] | None = None
    for batch in compute.usage.time_data_wait(batches):
        with compute.usage.time_compute(batch.num), oom_as_error(batch.num, compute.device):
            logit, mean_cam = _forward(run, batch.patches.get(), compute, views=views)
        coming = link.fetch([logit] if mean_cam is None else [logit, mean_cam])
        if under_way is not None:
            yield _to_numpy(*under_way)
        under_way = coming, batch.num
    if under_way is not None:
        yield _to_numpy(*under_way)


def _prepare_networks(
    classifiers: Sequence[PatchClassifier],
    compute: DeviceConfig,
    cam: CamSpec | None,
    stack: ExitStack,
) -> list[ForwardFn]:
    with oom_as_error("the model; end what else uses it", compute.device):
        return [_build_forward(classifier, compute, cam, stack) for classifier in classifiers]


def _build_forward(
    classifier: PatchClassifier, compute: DeviceConfig, cam: CamSpec | None, stack: ExitStack
) -> ForwardFn:
    """Return how a classifier sees a batch; what that borrows is given back by the stack."""
    classifier.eval().to(compute.device)
    if cam is not None:
        cam = cam.of(classifier)
    # A CAM may be taken from a convolution, which then must give what it always gave.
    ready = fuse_batch_norm(classifier, keep=None if cam is None else cam.layer)
    ready.to(memory_format=torch.channels_last)
    if compute.compiled and can_compile(ready, cam):
        return compile_predictor(ready, cam)
    if compute.compiled:
        logger.info("%s with such a CAM is not compiled", ready.arch.name)
    if cam is None:
        return _without_cam(ready)
    return stack.enter_context(cam_extractor(ready, **vars(cam)))


def _without_cam(classifier: PatchClassifier) -> ForwardFn:
    return lambda patches: (classifier(patches).float(), None)


@torch.inference_mode()
def _forward(
    run: Sequence[ForwardFn], patches: Tensor, compute: DeviceConfig, *, views: range
) -> tuple[Tensor, Tensor | None]:
    """Return logits (n, k, num_classes) and CAM (n, h, w) of patches (n, H, W, 3)."""
    logits, cams = [], []
    for extract in run:
        for view in views:
            seen = patches if view == 0 else _apply_view(to_images(patches), view)
            with compute.autocast():
                logit, cam = extract(seen)
            logits.append(logit)
            if cam is not None:
                cams.append(_apply_view(cam[:, None], _UNDO[view])[:, 0])
    return torch.stack(logits, dim=1), _mean_cam(cams) if cams else None


def _apply_view(images: Tensor, view: int) -> Tensor:
    """Show all images (n, C, H, H) in one of the 8 views."""
    if view == 0:
        return images
    turned = dihedral(images, torch.full((len(images),), view))
    return turned.contiguous(memory_format=torch.channels_last)


def _mean_cam(cams: Sequence[Tensor]) -> Tensor:
    """Return the mean of CAMs (n, h, w), on the grid of the first one.

    A cell holds its part of the logit, so a finer grid's cells hold less each.
    """
    size = cams[0].shape[1:]
    cells = size.numel()
    same = [
        cam
        if cam.shape[1:] == size
        else F.interpolate(cam[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
        * (cam.shape[1:].numel() / cells)
        for cam in cams
    ]
    return torch.stack(same).mean(dim=0)


def _to_numpy(coming: PendingResult, num: int) -> RawPrediction:
    """Return the results of the first ``num`` patches."""
    logit, *cam = (array[:num] for array in coming.arrays())
    # A NaN would read as "no patch" in a map.
    if not np.isfinite(logit).all():
        raise CheckpointError(
            "the model gives logits that are not finite; use --precision fp32 or train it anew"
        )
    return RawPrediction(logit, cam[0] if cam else None)


def _multiple(compute: DeviceConfig, batch_size: int) -> int:
    """Return of what number a batch's size is to be a multiple; compiled is one size alone."""
    whole = -(-batch_size // _PATCHES_AT_LEAST) * _PATCHES_AT_LEAST
    return whole if compute.compiled else _PATCHES_AT_LEAST


def _pad_batch(patches: NDArray[np.uint8], link: DeviceTransfer, *, multiple: int) -> _Batch:
    """Send patches (n, H, W, 3) as a batch whose size is a multiple of ``multiple``."""
    num = len(patches)
    padding = -num % multiple
    filled = np.concatenate([patches, patches[:1].repeat(padding, axis=0)]) if padding else patches
    with oom_as_error(num, link.device):
        return _Batch(link.send(filled), num)
