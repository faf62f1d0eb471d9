"""Run a classifier over patches of a pack, in batches, while the next ones are being read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_idc.ahead import one_ahead
from wsi_idc.config import PREDICT_BATCH_SIZE
from wsi_idc.data.pack import Pack
from wsi_idc.errors import CheckpointError
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier, logits_and_cam
from wsi_idc.models.device import Compute

# Networks bear a little of a difference in scale, and files state mpp with rounding.
_MPP_TOLERANCE = 0.1


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of consecutive patches.

    Attributes:
        logit: Shape (n, num_classes), float32.
        cam: Raw Grad-CAM of IDC, shape (n, h, w), float32; None where not asked for.
    """

    logit: NDArray[np.float32]
    cam: NDArray[np.float32] | None


def predict(
    classifier: PatchClassifier,
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    compute: Compute,
    batch_size: int = PREDICT_BATCH_SIZE,
    with_cam: bool = False,
) -> Iterator[Predicted]:
    """Yield predictions of the pack's patches ``rows``, in their order, a batch at a time.

    The classifier is put into eval mode and left in it.
    """
    classifier.eval().to(compute.device).to(memory_format=torch.channels_last)
    batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    # One batch is under way on the device while the last one's results are fetched and used.
    under_way: tuple[Tensor, Tensor | None] | None = None
    for patches in _read_ahead(pack, batches, pin=compute.device.type == "cuda"):
        started = _forward(classifier, patches, compute, with_cam=with_cam)
        if under_way is not None:
            yield _fetch(*under_way)
        under_way = started
    if under_way is not None:
        yield _fetch(*under_way)


def predict_logits(
    classifier: PatchClassifier,
    pack: Pack,
    rows: NDArray[np.int64],
    *,
    compute: Compute,
    batch_size: int = PREDICT_BATCH_SIZE,
) -> NDArray[np.float32]:
    """Return the logits, shape (N, num_classes), of the pack's patches ``rows``."""
    found = predict(classifier, pack, rows, compute=compute, batch_size=batch_size)
    none = np.empty((0, len(pack.info.class_names)), np.float32)
    return np.concatenate([none, *(part.logit for part in found)])


@torch.inference_mode()
def _forward(
    classifier: PatchClassifier, patches: Tensor, compute: Compute, *, with_cam: bool
) -> tuple[Tensor, Tensor | None]:
    patches = patches.to(compute.device, non_blocking=True)
    with compute.autocast():
        if with_cam:
            return logits_and_cam(classifier, patches)
        return classifier(patches).float(), None


def _fetch(logit: Tensor, cam: Tensor | None) -> Predicted:
    found = Predicted(logit.cpu().numpy(), None if cam is None else cam.cpu().numpy())
    # A NaN would read as "no patch" in a map.
    if not np.isfinite(found.logit).all():
        raise CheckpointError(
            "the model gives logits that are not finite; use --precision fp32 or train it anew"
        )
    return found


def _read_ahead(pack: Pack, batches: list[NDArray[np.int64]], *, pin: bool) -> Iterator[Tensor]:
    """Yield batches of patches (n, H, W, 3), uint8, the next one read by a thread meanwhile."""

    def read(rows: NDArray[np.int64]) -> Tensor:
        patches = torch.from_numpy(pack.patches[rows])
        return patches.pin_memory() if pin else patches

    return one_ahead(read, batches)


def check_fits(checkpoint: Checkpoint, pack: Pack) -> None:
    """Raise where patches of the pack are not what the model was trained on.

    Raises:
        CheckpointError: Their size or their microns per pixel differ.
    """
    spec, info = checkpoint.input, pack.info
    if spec.patch_px != info.patch_px:
        raise CheckpointError(
            f"{checkpoint.source}: takes patches of {spec.patch_px} px, {pack.path} has "
            f"{info.patch_px} px; prepare the data at the model's size"
        )
    if abs(spec.mpp / info.mpp - 1) > _MPP_TOLERANCE:
        raise CheckpointError(
            f"{checkpoint.source}: was trained at {spec.mpp:g} um/px, {pack.path} has "
            f"{info.mpp:g} um/px; use data and model of one resolution"
        )
