"""The predictor: checkpoints, test-time augmentation and smoothing, from patches to probabilities.

``eval`` and ``map`` share it, so both give a patch the same probability.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from wsi_idc.core.constants import IDC, PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import NUM_DIHEDRAL
from wsi_idc.data.pack import Pack
from wsi_idc.inference.calibration import idc_probability
from wsi_idc.inference.predict import BatchPredictor, RawPrediction, batch_predictor, predict
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.cam_layers import check_cam_layer, default_cam_layer
from wsi_idc.models.checkpoint import Checkpoint, Smoothing
from wsi_idc.models.classifier import PatchClassifier
from wsi_idc.models.registry import architecture
from wsi_idc.runtime.device import DeviceConfig

# Relative. Networks tolerate a small difference in scale, and files state a rounded mpp.
MPP_TOLERANCE = 0.1


@dataclass(frozen=True)
class Prediction:
    """Calibrated predictions of patches.

    Attributes:
        logit: Shape (N, num_classes), float32; the softmax of ``logit / Predictor.temperature`` is
            the probability. With several views or checkpoints, the logarithm of the mean
            probabilities.
        probability: Calibrated probability of IDC, the mean over views and checkpoints, shape
            (N,), float32.
        uncertainty: Standard deviation of that probability over views and checkpoints, shape
            (N,), float32; None for one checkpoint and one view.
    """

    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None


@dataclass(frozen=True)
class Predictor:
    """Checkpoints and the way that their outputs are combined.

    Attributes:
        checkpoints: One checkpoint, or several whose probabilities are averaged.
        tta: Whether each patch is predicted in its 8 flips and quarter turns (test-time
            augmentation).
        smooth: Whether a patient's probabilities are also smoothed by their neighbors.

    Raises:
        CheckpointError: A checkpoint is given twice, has other classes or no smoothing.
    """

    checkpoints: tuple[Checkpoint, ...]
    tta: bool = False
    smooth: bool = False

    def __post_init__(self) -> None:
        first, fingerprints = self.checkpoints[0], Counter(c.fingerprint for c in self.checkpoints)
        for checkpoint in self.checkpoints:
            if checkpoint.fingerprint is not None and fingerprints[checkpoint.fingerprint] > 1:
                raise CheckpointError(
                    f"{checkpoint.source}: given twice; an ensemble needs different ones"
                )
            if checkpoint.class_names != first.class_names:
                raise CheckpointError(
                    f"{checkpoint.source} and {first.source} have other classes, "
                    f"{', '.join(checkpoint.class_names)} and {', '.join(first.class_names)}; an "
                    "ensemble needs the same"
                )
            if self.smooth and checkpoint.smoothing is None:
                raise CheckpointError(
                    f"{checkpoint.source}: no smoothing was fitted when it was trained; run the "
                    "same wsi-idc train again, which only calibrates it again"
                )

    @property
    def is_single(self) -> bool:
        """True for one checkpoint that predicts each patch once."""
        return len(self.checkpoints) == 1 and not self.tta

    @property
    def temperature(self) -> float:
        """Divisor of ``Prediction.logit`` before the softmax."""
        return self.checkpoints[0].temperature if self.is_single else 1.0

    @property
    def threshold(self) -> float:
        """Probability from which a patch is called IDC: the mean of the checkpoints' thresholds."""
        return float(np.mean([checkpoint.threshold for checkpoint in self.checkpoints]))

    @property
    def smoothing(self) -> Smoothing | None:
        """Mean of the checkpoints' smoothing parameters; None without smoothing."""
        if not self.smooth:
            return None
        each = [astuple(c.smoothing) for c in self.checkpoints if c.smoothing]
        return Smoothing(*(float(np.mean(values)) for values in zip(*each, strict=True)))

    def patients(self, *roles: str) -> set[str]:
        """Return the patients that had one of these roles for any of the checkpoints."""
        return set().union(*(checkpoint.patients(*roles) for checkpoint in self.checkpoints))

    def validate_input(self, pack: Pack) -> None:
        """Check that the pack's patches have the size and scale that the networks take."""
        info = pack.info
        for checkpoint in self.checkpoints:
            spec = checkpoint.input
            if spec.patch_px != info.patch_px:
                raise CheckpointError(
                    f"{checkpoint.source}: takes patches of {spec.patch_px} px, {pack.path} has "
                    f"{info.patch_px} px; prepare the data at the model's size"
                )
            if abs(spec.mpp / info.mpp - 1) > MPP_TOLERANCE:
                raise CheckpointError(
                    f"{checkpoint.source}: was trained at {spec.mpp:g} um/px, {pack.path} has "
                    f"{info.mpp:g} um/px; use data and model of one resolution"
                )

    def validate_cam(self, cam: CamSpec, *, patch_px: int) -> None:
        """Check that every network has this CAM, and that it is fine enough."""
        for checkpoint in self.checkpoints:
            arch, input_px = architecture(checkpoint.architecture), checkpoint.input.input_px
            layer = cam.layer or default_cam_layer(arch, input_px)
            check_cam_layer(arch, input_px or patch_px, layer)

    def predict(
        self,
        pack: Pack,
        rows: NDArray[np.int64],
        *,
        device_config: DeviceConfig,
        batch_size: int = PREDICT_BATCH_SIZE,
        cam: CamSpec | None = None,
    ) -> Generator[RawPrediction, None, None]:
        """Yield the checkpoints' predictions of the pack's patches ``rows``, batch by batch."""
        return predict(
            self._build(),
            pack,
            rows,
            device_config=device_config,
            batch_size=batch_size,
            cam=cam,
            tta=self.tta,
        )

    def batch_predictor(
        self,
        *,
        device_config: DeviceConfig,
        batch_size: int = PREDICT_BATCH_SIZE,
        cam: CamSpec | None = None,
    ) -> AbstractContextManager[BatchPredictor]:
        """Return a context manager that yields a batch predictor for any number of slides."""
        return batch_predictor(
            self._build, device_config=device_config, batch_size=batch_size, cam=cam, tta=self.tta
        )

    def _build(self) -> list[PatchClassifier]:
        return [checkpoint.build() for checkpoint in self.checkpoints]

    def aggregate(self, logit: NDArray[np.float32]) -> Prediction:
        """Combine the logits (N, k, num_classes) of all checkpoints and views."""
        if self.is_single:
            single = logit[:, 0]
            return Prediction(single, idc_probability(single, temperature=self.temperature), None)
        views = NUM_DIHEDRAL if self.tta else 1
        temperature = np.repeat([checkpoint.temperature for checkpoint in self.checkpoints], views)
        each = softmax(logit.astype(np.float64) / temperature[:, None], axis=2)
        mean = each.mean(axis=1)  # (N, num_classes)
        # A class of probability 0 gets the smallest finite logit.
        pooled = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
        parts = (pooled, mean[:, IDC], each[:, :, IDC].std(axis=1))
        return Prediction(*(part.astype(np.float32) for part in parts))

    def uncalibrated(self) -> "Predictor":
        """Return this predictor with all temperatures set to 1."""
        members = tuple(replace(c, temperature=1.0) for c in self.checkpoints)
        return replace(self, checkpoints=members)

    def cache_key(self) -> dict[str, Any]:
        """Return all that decides the probabilities, JSON-ready."""
        fingerprints = [checkpoint.fingerprint for checkpoint in self.checkpoints]
        checkpoint = fingerprints[0] if len(fingerprints) == 1 else fingerprints
        return {"checkpoint": checkpoint, "tta": self.tta, "smooth": self.smooth}

    def summary(self) -> dict[str, Any]:
        """Summarize the predictor, JSON-ready: the first checkpoint, the options, the ensemble."""
        members = [checkpoint.summary() for checkpoint in self.checkpoints]
        summary = {**members[0], "tta": self.tta, "smooth": self.smooth}
        return summary if len(members) == 1 else {**summary, "ensemble": members}
