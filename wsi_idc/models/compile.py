"""A classifier through torch.compile: logits and Grad-CAM of the last feature map in one graph."""

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from wsi_idc.models.cam import CamSpec, cam_of_head
from wsi_idc.models.classifier import PatchClassifier, to_images


def can_compile(classifier: PatchClassifier, cam: CamSpec | None) -> bool:
    """Return whether ``compile_predictor`` supports this network with this CAM."""
    arch = classifier.arch
    is_last_map = cam is None or (cam.method == "gradcam" and cam.layer in (None, arch.cam_layer))
    return arch.closed_form and is_last_map


def compile_predictor(
    classifier: PatchClassifier, cam: CamSpec | None
) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return a function like that of ``cam_extractor``, compiled at its first batch.

    Each new batch size is compiled again, so use one size only.

    Args:
        classifier: Classifier in eval mode, on its final device.
        cam: CAM that ``can_compile`` accepts; None computes none.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

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
    compiled = torch.compile(own_code, dynamic=False)

    def extract(patches: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return compiled(patches)

    return extract
