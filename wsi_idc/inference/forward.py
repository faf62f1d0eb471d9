"""Forward pass of classifiers: logits, CAMs and distances of one batch on the device."""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsi_idc.data.augmentation import INVERSE_DIHEDRAL, dihedral
from wsi_idc.models.batch_norm import OPAQUE, fuse_batch_norm
from wsi_idc.models.cam import CamSpec, cam_extractor, cam_of_head
from wsi_idc.models.classifier import PatchClassifier, to_images
from wsi_idc.models.novelty import map_statistics, recorded_statistics
from wsi_idc.runtime.device import DeviceConfig, oom_as_error

logger = logging.getLogger(__name__)

# A batch is padded to a multiple of this size. Otherwise, the last digits of the logits would
# depend on the size of the batch, because devices compute small batches in another way.
BATCH_MULTIPLE = 16

# Function that takes patches on the device. It returns logits (n, num_classes), the CAM (n, h, w)
# or None, and the distance (n,) or None.
ForwardFn = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]


def build_forward(
    classifier: PatchClassifier,
    *,
    device_config: DeviceConfig,
    cam: CamSpec | None,
    stack: ExitStack,
    num_copies: int = 1,
) -> list[ForwardFn]:
    """Build functions that run a classifier on a batch; each of them can run in its own thread.

    Args:
        classifier: Classifier; it is moved to the device and set to eval mode.
        device_config: Device and precision.
        cam: CAM to compute; None: no CAM.
        stack: Stack whose end removes the hooks from the networks.
        num_copies: Number of functions. Their networks share the weights.
    """
    cam = None if cam is None else cam.resolve(classifier)
    with oom_as_error("the model; end other programs that use it", device_config.device):
        classifier.eval().to(device_config.device)
        # Do not fuse the layer of the CAM, because the CAM needs its original output.
        fused = fuse_batch_norm(classifier, keep=None if cam is None else cam.layer)
        fused.to(memory_format=torch.channels_last)
    if device_config.compiled and can_compile(fused, cam):
        return [compile_predictor(fused, cam)]
    if device_config.compiled:
        logger.info(
            "%s is not compiled: --compile supports only networks of torchvision and this program "
            "that end with average pooling and one linear layer, and only Grad-CAM at the last "
            "feature map",
            fused.arch.name,
        )
    return [_add_hooks(network, cam, stack) for network in shared_copies(fused, num_copies)]


def batches_in_flight(device_config: DeviceConfig, batch_size: int) -> int:
    """Return the number of batches that the device computes at the same time.

    On a CPU, several batches with one thread each are faster than one batch with all threads: no
    thread waits for the others after each layer. Beside other programs, this waiting costs most
    of the time. A GPU and a compiled network compute one batch.

    Args:
        device_config: Device and precision.
        batch_size: Number of patches that are computed at the same time. Each batch in flight
            gets a share of at least ``BATCH_MULTIPLE`` patches.
    """
    if device_config.device.type != "cpu" or device_config.compiled:
        return 1
    return max(1, min(torch.get_num_threads(), batch_size // BATCH_MULTIPLE))


def shared_copies(classifier: PatchClassifier, num: int) -> list[PatchClassifier]:
    """Return ``num`` classifiers with separate modules and hooks, but with the same weights."""
    tensors = [*classifier.parameters(), *classifier.buffers()]
    return [
        classifier,
        *(copy.deepcopy(classifier, {id(x): x for x in tensors}) for _ in range(num - 1)),
    ]


def _add_hooks(classifier: PatchClassifier, cam: CamSpec | None, stack: ExitStack) -> ForwardFn:
    """Return a function that also computes CAMs and distances, by hooks of the network."""
    if cam is None:
        forward: Any = lambda patches: (classifier(patches).float(), None)  # noqa: E731
    else:
        forward = stack.enter_context(cam_extractor(classifier, **vars(cam)))
    if classifier.novelty is None:
        return lambda patches: (*forward(patches), None)
    novelty = classifier.novelty.to(classifier.mean.device)
    recorded = stack.enter_context(recorded_statistics(classifier.network, novelty.layer))

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
        tracer_kwargs={"leaf_modules": list(OPAQUE)},
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
def forward_views(
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
    return resized[0] if len(resized) == 1 else torch.stack(resized).mean(dim=0)
