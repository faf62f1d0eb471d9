"""Encoder: a network that computes features of patches, from published weights or a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from wsi_idc.core.constants import NUM_CLASSES
from wsi_idc.core.errors import CheckpointError
from wsi_idc.inference.features import encoder_fingerprint, num_features
from wsi_idc.models import pretrained
from wsi_idc.models.cam_layers import check_input_px
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture


@dataclass(frozen=True)
class Encoder:
    """A network and the patches that it takes.

    Attributes:
        classifier: Network with its preprocessing.
        patch_px: Side of a patch in px.
        mpp: Microns per px of a patch.
        num_features: Number of features of a patch.
        fingerprint: SHA-256 of the weights and the preprocessing.
    """

    classifier: PatchClassifier
    patch_px: int
    mpp: float
    num_features: int
    fingerprint: str

    @property
    def name(self) -> str:
        """Name of the architecture."""
        return self.classifier.arch.name


def encoder_of_checkpoint(checkpoint: Checkpoint) -> Encoder:
    """Return the network of a checkpoint as an encoder.

    Raises:
        CheckpointError: The network has no features.
    """
    return _encoder(checkpoint.build(), checkpoint.input.patch_px, checkpoint.input.mpp)


def pretrained_encoder(
    model: str, weights: str, *, input_px: int, patch_px: int | None, mpp: float
) -> Encoder:
    """Build an encoder from initial weights.

    Args:
        model: Name of the architecture.
        weights: "imagenet" for the published weights, "auto" for the same, or the path of a file or
            folder.
        input_px: Side in px to which patches are resized; 0: the usual size of the network.
        patch_px: Side of a patch in px; None: the side to which patches are resized.
        mpp: Microns per px of a patch.

    Raises:
        CheckpointError: The weights cannot be used, or the network has no features.
    """
    arch = architecture(model)
    input_px = input_px or arch.input_px or 0
    patch_px = patch_px or input_px
    if not patch_px:
        raise CheckpointError(f"{arch.name} has no usual patch size; give --patch-px")
    if weights == "none":
        raise CheckpointError("features of random weights are useless; give other --weights")
    check_input_px(arch, input_px or patch_px)
    network = arch.build(NUM_CLASSES)
    if weights in ("auto", "imagenet"):
        normalization: pretrained.Normalization | None = pretrained.load_imagenet(network, arch)
    else:
        normalization = pretrained.load_weights_file(network, arch, Path(weights))
    mean, std = normalization or pretrained.usual_normalization(arch)
    classifier = PatchClassifier(
        *(arch, network),
        input_px=input_px or None,
        mean=mean,
        std=std,
        interpolation=arch.interpolation,
    )
    return _encoder(classifier.eval(), patch_px, mpp)


def _encoder(classifier: PatchClassifier, patch_px: int, mpp: float) -> Encoder:
    size = num_features(classifier, patch_px)
    return Encoder(classifier, patch_px, mpp, size, encoder_fingerprint(classifier))
