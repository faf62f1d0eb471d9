"""A classifier through torch.compile: logits and Grad-CAM of the last feature map in one graph."""

import logging
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from wsi_idc.models.cam import CamSpec, cam_of_head
from wsi_idc.models.classifier import PatchClassifier, to_images

logger = logging.getLogger(__name__)


def can_compile(classifier: PatchClassifier, cam: CamSpec | None) -> bool:
    """Return whether ``compiled`` computes such CAMs of such a network."""
    arch = classifier.arch
    is_usual = cam is None or (cam.method == "gradcam" and cam.layer in (None, arch.cam_layer))
    return arch.closed_form and is_usual


def compile_predictor(
    classifier: PatchClassifier, cam: CamSpec | None
) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return a function as ``cam_extractor`` lends one, compiled at its first batch.

    Each new size of batch is compiled anew, so give it one size alone.

    Args:
        classifier: In eval mode, on its device; must stay there.
        cam: Which CAM; None computes none. ``can_compile`` must say yes to it.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    arch = classifier.arch
    # Without hooks, which would break the graph in two.
    both = create_feature_extractor(
        classifier.network,
        {arch.cam_layer: "features", arch.head: "logits"},
        tracer_kwargs={"leaf_modules": [nn.Conv2d]},
    ).eval()

    def forward(patches: Tensor) -> tuple[Tensor, Tensor | None]:
        return _run(classifier, both, patches, cam)

    # torch compiles one code eight times at most, and an ensemble has more: each has its own.
    own = FunctionType(forward.__code__.replace(), globals(), closure=forward.__closure__)
    # torch reckons with any size at the second one that it meets; one size is faster.
    run = torch.compile(own, dynamic=False)

    def extract(patches: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return run(patches)

    return extract


def _run(
    classifier: PatchClassifier, both: nn.Module, patches: Tensor, cam: CamSpec | None
) -> tuple[Tensor, Tensor | None]:
    images = to_images(patches) if patches.dtype == torch.uint8 else patches
    found = both(classifier.preprocess(images))
    logits = found["logits"].flatten(1).float()
    if cam is None:
        return logits, None
    return logits, cam_of_head(found["features"], classifier.head.weight[cam.class_index])
