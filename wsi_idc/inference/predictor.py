"""The way from patches to probabilities: which checkpoints, which views, smoothed or not.

``eval`` and ``map`` both go this way, so they say the same of the same patch.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from wsi_idc.core.constants import IDC, PREDICT_BATCH_SIZE
from wsi_idc.core.errors import CheckpointError
from wsi_idc.data.augmentation import NUM_DIHEDRAL
from wsi_idc.data.pack import Pack
from wsi_idc.inference.calibration import idc_probability, smoothed_probability
from wsi_idc.inference.predict import PatchPredictor, RawPrediction, batch_predictor, predict
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.cam_layers import check_cam_layer, default_cam_layer
from wsi_idc.models.checkpoint import Checkpoint, Smoothing
from wsi_idc.models.registry import architecture
from wsi_idc.runtime.device import DeviceConfig

# Networks bear a little of a difference in scale, and files state mpp with rounding.
MPP_TOLERANCE = 0.1


@dataclass(frozen=True)
class Prediction:
    """What a method says of patches.

    Attributes:
        logit: Shape (N, num_classes), float32; its softmax at ``Method.temperature`` is the
            probability. Of several views or checkpoints, the logarithm of the mean probabilities.
        probability: Calibrated probability of IDC, the mean over views and checkpoints, shape
            (N,), float32.
        uncertainty: Standard deviation of that probability over views and checkpoints, shape
            (N,), float32; None where there is one of each.
    """

    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None


@dataclass(frozen=True)
class Predictor:
    """How probabilities come of patches.

    Attributes:
        checkpoints: One, or several whose probabilities are averaged.
        tta: Whether each patch is seen in the 8 flips and quarter turns (test-time augmentation).
        smooth: Whether a patient's probabilities are also smoothed by their neighbours.

    Raises:
        CheckpointError: The checkpoints do not go together, or one cannot smooth.
    """

    checkpoints: tuple[Checkpoint, ...]
    tta: bool = False
    smooth: bool = False

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ValueError("a method needs a checkpoint")
        first = self.checkpoints[0]
        prints = [one.fingerprint for one in self.checkpoints]
        for number, one in enumerate(self.checkpoints):
            if one.fingerprint is not None and one.fingerprint in prints[:number]:
                raise CheckpointError(
                    f"{one.source}: given twice; an ensemble needs different ones"
                )
            if one.class_names != first.class_names:
                raise CheckpointError(
                    f"{one.source} and {first.source} have other classes, "
                    f"{', '.join(one.class_names)} and {', '.join(first.class_names)}; an "
                    "ensemble needs the same"
                )
            if self.smooth and one.smoothing is None:
                raise CheckpointError(
                    f"{one.source}: no smoothing was fitted when it was trained; run the same "
                    "wsi-idc train again, which only calibrates it anew"
                )

    @property
    def is_single(self) -> bool:
        """Whether one checkpoint sees each patch once."""
        return len(self.checkpoints) == 1 and not self.tta

    @property
    def temperature(self) -> float:
        """What divides ``Said.logit`` ahead of the softmax."""
        return self.checkpoints[0].temperature if self.is_single else 1.0

    @property
    def threshold(self) -> float:
        """Probability from which a patch is called IDC: the mean of the checkpoints' own."""
        return float(np.mean([one.threshold for one in self.checkpoints]))

    @property
    def smoothing(self) -> Smoothing | None:
        """How probabilities are smoothed, the mean of the checkpoints' own; None: not."""
        found = [one.smoothing for one in self.checkpoints if one.smoothing is not None]
        if not self.smooth:
            return None
        return Smoothing(
            *(
                float(np.mean([getattr(one, name) for one in found]))
                for name in ("sigma_um", "temperature", "threshold")
            )
        )

    def patients(self, *roles: str) -> set[str]:
        """Return the patients that had one of these roles for any of the checkpoints."""
        return set().union(*(one.patients(*roles) for one in self.checkpoints))

    def validate_input(self, pack: Pack) -> None:
        """Raise where patches of the pack are not what the checkpoints were trained on.

        Raises:
            CheckpointError: Their size or their microns per pixel differ.
        """
        for one in self.checkpoints:
            validate_input(one, pack)

    def check_cam(self, cam: CamSpec, *, patch_px: int) -> None:
        """Raise where a checkpoint's network has no such CAM, or one too coarse to show anything.

        Raises:
            CheckpointError: It says what to do.
        """
        for one in self.checkpoints:
            arch = architecture(one.architecture)
            layer = cam.layer or default_cam_layer(arch, one.input.input_px)
            check_cam_layer(arch, one.input.input_px or patch_px, layer)

    def predict(
        self,
        pack: Pack,
        rows: NDArray[np.int64],
        *,
        compute: DeviceConfig,
        batch_size: int = PREDICT_BATCH_SIZE,
        cam: CamSpec | None = None,
    ) -> Generator[RawPrediction, None, None]:
        """Yield what the checkpoints say of the pack's patches ``rows``, a batch at a time."""
        built = [one.build() for one in self.checkpoints]
        return predict(
            built, pack, rows, compute=compute, batch_size=batch_size, cam=cam, tta=self.tta
        )

    def patch_predictor(
        self,
        *,
        compute: DeviceConfig,
        batch_size: int = PREDICT_BATCH_SIZE,
        cam: CamSpec | None = None,
    ) -> AbstractContextManager[PatchPredictor]:
        """Lend what the checkpoints say of batches of patches, of any number of slides."""
        return batch_predictor(
            lambda: [one.build() for one in self.checkpoints],
            compute=compute,
            batch_size=batch_size,
            cam=cam,
            tta=self.tta,
        )

    def aggregate(self, logit: NDArray[np.float32]) -> Prediction:
        """Return what follows from the logits (N, k, num_classes) of ``predict``."""
        views = NUM_DIHEDRAL if self.tta else 1
        if self.is_single:
            alone = logit[:, 0]
            return Prediction(alone, idc_probability(alone, temperature=self.temperature), None)
        temperature = np.repeat([one.temperature for one in self.checkpoints], views)
        each = softmax(logit.astype(np.float64) / temperature[:, None], axis=2)
        mean = each.mean(axis=1)  # (N, num_classes)
        # A class that no view believes in has the smallest logit that is a number.
        floor = np.finfo(np.float32).tiny
        return Prediction(
            logit=np.log(np.maximum(mean, floor)).astype(np.float32),
            probability=mean[:, IDC].astype(np.float32),
            uncertainty=each[:, :, IDC].std(axis=1).astype(np.float32),
        )

    def smoothed(
        self,
        probability: NDArray[np.float32],
        patient: NDArray,
        row_col: NDArray[np.int32],
        *,
        patch_um: float,
    ) -> NDArray[np.float32] | None:
        """Return the smoothed probability of IDC, shape (N,), None where it is not wanted."""
        if self.smoothing is None:
            return None
        return smoothed_probability(
            probability, patient, row_col, smoothing=self.smoothing, patch_um=patch_um
        )

    def uncalibrated(self) -> "Predictor":
        """Return the same method without the temperatures that were set on val patients."""
        plain = tuple(replace(one, temperature=1.0) for one in self.checkpoints)
        return replace(self, checkpoints=plain)

    def identity(self) -> dict[str, Any]:
        """Return what decides the probabilities, JSON-ready."""
        prints = [one.fingerprint for one in self.checkpoints]
        checkpoint = prints[0] if len(prints) == 1 else prints
        return {"checkpoint": checkpoint, "tta": self.tta, "smooth": self.smooth}

    def summary(self) -> dict[str, Any]:
        """Return what identifies it, JSON-ready: the first checkpoint, and what goes beyond it."""
        members = [one.summary() for one in self.checkpoints]
        found = {**members[0], "tta": self.tta, "smooth": self.smooth}
        return found if len(members) == 1 else {**found, "ensemble": members}


def validate_input(checkpoint: Checkpoint, pack: Pack) -> None:
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
    if abs(spec.mpp / info.mpp - 1) > MPP_TOLERANCE:
        raise CheckpointError(
            f"{checkpoint.source}: was trained at {spec.mpp:g} um/px, {pack.path} has "
            f"{info.mpp:g} um/px; use data and model of one resolution"
        )
