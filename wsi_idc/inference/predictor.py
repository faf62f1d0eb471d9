"""Predictor: computes probabilities of patches from checkpoints, with test-time augmentation.

The commands ``eval`` and ``map`` use the same predictor, so they compute the same probabilities.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from wsi_idc.core.constants import IDC
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import NUM_DIHEDRAL
from wsi_idc.data.pack import Pack
from wsi_idc.inference.predict import BatchPredictor, RawPrediction, batch_predictor, predict
from wsi_idc.inference.probability import idc_probability
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.cam_layers import check_cam_layer, default_cam_layer
from wsi_idc.models.checkpoint import Checkpoint
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.novelty import NoveltyModel
from wsi_idc.models.registry import architecture
from wsi_idc.models.smoothing import NeighborModel, Smoothing

# Largest accepted relative difference of mpp. Networks tolerate it; many files have a rounded mpp.
MPP_TOLERANCE = 0.1


@dataclass(frozen=True)
class Prediction:
    """Calibrated predictions of patches.

    Attributes:
        logit: Logits, shape (N, num_classes), float32. With several views or checkpoints, a logit
            is the logarithm of the mean probability of the class. The probabilities are
            ``softmax(logit / Predictor.temperature)``.
        probability: Calibrated probability of IDC, shape (N,), float32; the mean over all views
            and checkpoints.
        uncertainty: Standard deviation of the probability over all views and checkpoints, shape
            (N,), float32; None if there is only one checkpoint and one view.
    """

    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None


@dataclass(frozen=True)
class Predictor:
    """One or more checkpoints that predict patches, and the options of the prediction.

    Attributes:
        checkpoints: Checkpoints whose probabilities are averaged.
        tta: Whether to predict all 8 views (flips and quarter turns) of each patch.
        smooth: Whether to also compute probabilities smoothed over neighboring patches. None: only
            if all checkpoints have a neighbor model.

    Raises:
        CheckpointError: A checkpoint is given twice, two checkpoints have different classes, or
            ``smooth`` is True but a checkpoint has no smoothing.
    """

    checkpoints: tuple[Checkpoint, ...]
    tta: bool = False
    smooth: bool | None = False

    def __post_init__(self) -> None:
        first, fingerprints = self.checkpoints[0], [c.fingerprint for c in self.checkpoints]
        for checkpoint in self.checkpoints:
            if checkpoint.fingerprint and fingerprints.count(checkpoint.fingerprint) > 1:
                raise CheckpointError(
                    f"{checkpoint.source} is given twice; an ensemble needs different checkpoints"
                )
            if checkpoint.class_names != first.class_names:
                raise CheckpointError(
                    f"{checkpoint.source} has the classes {', '.join(checkpoint.class_names)}, but "
                    f"{first.source} has {', '.join(first.class_names)}; an ensemble needs the "
                    "same classes"
                )
            if self.smooth and checkpoint.smoothing is None:
                raise CheckpointError(
                    f"{checkpoint.source}: the checkpoint has no smoothing; run the same wsi-idc "
                    "train command again to fit the smoothing; the weights do not change"
                )

    @property
    def is_single(self) -> bool:
        """True if there is only one checkpoint and no test-time augmentation."""
        return len(self.checkpoints) == 1 and not self.tta

    @property
    def temperature(self) -> float:
        """Divisor of ``Prediction.logit`` before the softmax."""
        return self.checkpoints[0].temperature if self.is_single else 1.0

    @property
    def threshold(self) -> float:
        """Mean of ``Checkpoint.threshold`` over the checkpoints."""
        return float(np.mean([checkpoint.threshold for checkpoint in self.checkpoints]))

    @property
    def smoothing(self) -> Smoothing | NeighborModel | None:
        """Smoothing with the mean parameters of all checkpoints; None without smoothing.

        If all checkpoints have a neighbor model, the result is a neighbor model. Otherwise, the
        result is a Gaussian filter if ``smooth`` is True.
        """
        if self.smooth is False:
            return None
        models = [c.neighbors for c in self.checkpoints if c.neighbors is not None]
        if len(models) == len(self.checkpoints):
            weights = np.mean([model.weights for model in models], axis=0)
            numbers = np.mean([(m.bias, m.threshold, m.patch_um) for m in models], axis=0)
            return NeighborModel(tuple(map(float, weights)), *map(float, numbers))
        if self.smooth is None:
            return None
        each = [astuple(c.smoothing) for c in self.checkpoints if c.smoothing]
        return Smoothing(*(float(np.mean(values)) for values in zip(*each, strict=True)))

    def patients(self, *roles: str) -> set[str]:
        """Return the patients that have one of ``roles`` in at least one checkpoint."""
        return set().union(*(checkpoint.patients(*roles) for checkpoint in self.checkpoints))

    def validate_input(self, pack: Pack) -> None:
        """Raise CheckpointError if the pack and a checkpoint differ in patch size or mpp."""
        info = pack.info
        for checkpoint in self.checkpoints:
            spec = checkpoint.input
            if spec.patch_px != info.patch_px:
                raise CheckpointError(
                    f"{checkpoint.source} needs patches of {spec.patch_px} px, but {pack.path} has "
                    f"patches of {info.patch_px} px; prepare the data with the patch size of the "
                    "model"
                )
            if abs(spec.mpp / info.mpp - 1) > MPP_TOLERANCE:
                raise CheckpointError(
                    f"{checkpoint.source} was trained at {spec.mpp:g} um/px, but {pack.path} has "
                    f"{info.mpp:g} um/px; use data and model with the same resolution"
                )

    def validate_cam(self, cam: CamSpec, *, patch_px: int) -> None:
        """Raise CheckpointError if a network cannot compute ``cam``, or the CAM is too small."""
        for checkpoint in self.checkpoints:
            arch, input_px = architecture(checkpoint.architecture), checkpoint.input.input_px
            layer = cam.layer or default_cam_layer(arch, input_px)
            check_cam_layer(arch, input_px or patch_px, layer)

    def predict(
        self, pack: Pack, rows: NDArray[np.int64], **options: Any
    ) -> Generator[RawPrediction, None, None]:
        """Yield the prediction of each batch; ``options`` are arguments of ``predict.predict``."""
        return predict(self._build(), pack, rows, tta=self.tta, **options)

    def batch_predictor(self, **options: Any) -> AbstractContextManager[BatchPredictor]:
        """Return the context manager ``predict.batch_predictor`` for these checkpoints.

        ``options`` are keyword arguments of ``predict.batch_predictor``.
        """
        return batch_predictor(self._build, tta=self.tta, **options)

    def _build(self) -> list[PatchClassifier]:
        return [checkpoint.build() for checkpoint in self.checkpoints]

    def aggregate(self, logit: NDArray[np.float32]) -> Prediction:
        """Compute calibrated predictions from the logits of all checkpoints and views.

        Args:
            logit: Logits, shape (N, k, num_classes), as in ``RawPrediction``.
        """
        if self.is_single:
            single = logit[:, 0]
            return Prediction(single, idc_probability(single, temperature=self.temperature), None)
        views = NUM_DIHEDRAL if self.tta else 1
        temperature = np.repeat([checkpoint.temperature for checkpoint in self.checkpoints], views)
        each = softmax(logit.astype(np.float64) / temperature[:, None], axis=2)
        mean = each.mean(axis=1)  # (N, num_classes)
        # The logarithm of 0 is not finite, so 0 is replaced by the smallest positive number.
        pooled = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
        parts = (pooled, mean[:, IDC], each[:, :, IDC].std(axis=1))
        return Prediction(*(part.astype(np.float32) for part in parts))

    @property
    def _novelty_models(self) -> list[NoveltyModel]:
        return [c.novelty for c in self.checkpoints if c.novelty is not None]

    def novelty(self, distance: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """Convert the distances of patches into the novelty of each patch (``models.novelty``).

        Args:
            distance: Distances, shape (N, m), as in ``RawPrediction``.

        Returns:
            Mean novelty over all checkpoints with a novelty model, shape (N,), float32, 0..1; None
            if no checkpoint has a novelty model.
        """
        if distance is None:
            return None
        columns = zip(self._novelty_models, distance.T, strict=True)
        return np.mean([model.novelty(column) for model, column in columns], axis=0)

    def novelty_limit(self, num_patches: int) -> float | None:
        """Return the largest usual mean novelty of a patient with ``num_patches`` patches.

        If no checkpoint has a novelty model, return None.
        """
        limits = [model.patient_limit(num_patches) for model in self._novelty_models]
        return float(np.mean(limits)) if limits else None

    def uncalibrated(self) -> "Predictor":
        """Return a copy of this predictor in which all temperatures are 1."""
        members = tuple(replace(c, temperature=1.0) for c in self.checkpoints)
        return replace(self, checkpoints=members)

    def cache_key(self) -> dict[str, Any]:
        """Return a dictionary with all values on which the probabilities depend."""
        fingerprints = [checkpoint.fingerprint for checkpoint in self.checkpoints]
        checkpoint = fingerprints[0] if len(fingerprints) == 1 else fingerprints
        return {"checkpoint": checkpoint, "tta": self.tta, "smooth": self.smoothing is not None}

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor for a JSON file.

        The description has the summary of the first checkpoint and the options. If there are
        several checkpoints, the description also has a list with the summary of each checkpoint.
        """
        members = [checkpoint.summary() for checkpoint in self.checkpoints]
        summary = {**members[0], "tta": self.tta, "smooth": self.smoothing is not None}
        return summary if len(members) == 1 else {**summary, "ensemble": members}
