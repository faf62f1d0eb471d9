"""What making maps from packs and from slides has in common: identity, content, report."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import NO_ROLE, PREDICT_BATCH_SIZE, ROLES
from wsi_idc.core.errors import CheckpointError, MapError, StoppedError
from wsi_idc.core.provenance import provenance
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.maps.map_reader import map_path, read_provenance
from wsi_idc.maps.map_writer import FORMAT_VERSION, MAX_CAM_BYTES, MAX_CAM_SIDE
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.cam_layers import cam_grid, default_cam_layer
from wsi_idc.models.registry import architecture
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.signals import StopRequest, stopped_error

logger = logging.getLogger(__name__)


@dataclass
class MapReport:
    """What became of each patient.

    Attributes:
        made: Patient to its map file, newly made.
        kept: Patient to its map file that was there, made by the same method, settings and data.
        failed: Patient to the reason why it has no map.
        patches: Patient to number of patches in its map, for those made.
        idc_fraction: Patient to share of patches called IDC, for those made.
    """

    made: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    idc_fraction: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MapBuilder:
    """What every map of one call shares.

    Attributes:
        method: From patches to probabilities.
        compute: Device and precision.
        out: Folder of the maps.
        cam: Which CAM; None leaves CAMs out.
        with_image: Whether the stitched tissue is in the file.
        batch_size: Patches at a time.
        overwrite: Make maps anew that are there already.
        stop: Asks to leave after the map that is being made.
    """

    method: Predictor
    compute: DeviceConfig
    out: Path
    cam: CamSpec | None = field(default_factory=CamSpec)
    with_image: bool = True
    batch_size: int = PREDICT_BATCH_SIZE
    overwrite: bool = False
    stop: StopRequest | None = None

    @property
    def cam_layer(self) -> str:
        """Name of the module that CAMs are taken from; of an ensemble, the first one's."""
        if self.cam is not None and self.cam.layer is not None:
            return self.cam.layer
        first = self.method.checkpoints[0]
        return default_cam_layer(architecture(first.architecture), first.input.input_px)

    def cam_shape(self, *, patch_px: int) -> tuple[int, int]:
        """Return rows and columns of a patch's CAM."""
        first = self.method.checkpoints[0]
        size = first.input.input_px or patch_px
        return cam_grid(architecture(first.architecture), size, self.cam_layer)

    def check_cam(self, *, patch_px: int) -> None:
        """Raise where no patch has such a CAM, or one of more cells than a map can hold.

        Raises:
            CheckpointError: It says what to do.
        """
        if self.cam is None:
            return
        self.method.validate_cam(self.cam, patch_px=patch_px)
        rows, cols = self.cam_shape(patch_px=patch_px)
        if max(rows, cols) > MAX_CAM_SIDE:
            raise CheckpointError(
                f"CAM of {rows}x{cols} cells at layer {self.cam_layer}: a map holds at most "
                f"{MAX_CAM_SIDE} a side; give a later --cam-layer"
            )

    def validate_cam_size(self, num_patches: int, *, patch_px: int) -> None:
        """Raise where the CAMs of so many patches are more than a map can hold.

        Raises:
            MapError: It says what to do.
        """
        if self.cam is None:
            return
        num_bytes = 4 * num_patches * math.prod(self.cam_shape(patch_px=patch_px))
        if num_bytes > MAX_CAM_BYTES:
            raise MapError(
                f"CAMs of {num_patches} patches at layer {self.cam_layer}, "
                f"{num_bytes / 1e9:.0f} GB, are more than a map holds; give a later --cam-layer, "
                "or --no-cam"
            )

    def identity(self, **data: Any) -> dict[str, Any]:
        """Return all that decides what stands in a map, JSON-ready."""
        return {
            **self.method.cache_key(),
            **data,
            "precision": self.compute.precision,
            "image": self.with_image,
            "cam": None if self.cam is None else {**vars(self.cam), "layer": self.cam_layer},
            "format_version": FORMAT_VERSION,
        }

    def warn_training_patients(self, patients: Sequence[str]) -> None:
        """Say in the log which patients the model was trained on."""
        seen = sorted(self.method.patients("train").intersection(patients))
        if seen:
            logger.info(
                "the model was trained on %d of these patients (%s first): their maps flatter it",
                len(seen),
                seen[0],
            )

    def needs_rebuild(
        self, patient: str, identity: dict[str, Any], report: MapReport, *, data: Path
    ) -> bool:
        """Return whether to make a map of a pack or slide, and note in the report why not."""
        path = map_path(self.out, patient)
        try:
            record = read_provenance(path)
        except MapError as error:
            if self.overwrite:
                return True
            report.failed[patient] = f"{error}, with --overwrite"
            return False
        if record is None or self.overwrite:
            return True
        found = record.get("identity")
        found = found if isinstance(found, dict) else {}
        if found == identity:
            report.kept[patient] = path
            return False
        changed = sorted(key for key in identity if found.get(key) != identity[key])
        other = record.get("data", str(data))
        if "data" in changed and other != str(data):
            remedy = "give another --out to keep both"
            logger.warning("%s is of %s, but that of %s is due; %s", path, other, data, remedy)
        logger.info("%s: made with another %s, so due anew", path, ", ".join(changed))
        return True

    def content(
        self,
        patient: str,
        prediction: RawPrediction,
        *,
        row_col: NDArray[np.int32],
        patch_um: float,
        data: Path,
        identity: dict[str, Any],
        **more: Any,
    ) -> PatientMap:
        """Return a patient's map.

        Args:
            patient: Id.
            prediction: Of all its patches.
            row_col: Their cells, shape (N, 2).
            patch_um: Side of a cell.
            data: The pack or slide.
            identity: Of the map.
            more: The fields of a PatientMap that the method does not know.
        """
        method = self.method
        said, smoothing = method.aggregate(prediction.logit), method.smoothing
        one = np.zeros(len(row_col), np.int64)
        cam = self.cam or CamSpec()
        return PatientMap(
            patient=patient,
            row_col=row_col,
            class_names=method.checkpoints[0].class_names,
            threshold=method.threshold,
            temperature=method.temperature,
            model={**method.summary(), "role_of_patient": _role(method, patient)},
            provenance=provenance(data=str(data), identity=identity),
            logit=said.logit,
            probability=said.probability,
            uncertainty=said.uncertainty,
            smoothed=method.smoothed(said.probability, one, row_col, patch_um=patch_um),
            smoothing=None if smoothing is None else asdict(smoothing),
            cam=prediction.cam,
            cam_layer=self.cam_layer,
            cam_method=cam.method,
            cam_class=method.checkpoints[0].class_names[cam.class_index],
            **more,
        )


def _role(method: Predictor, patient: str) -> str:
    """Return what the patient was in the split; of several checkpoints, the worst that it was."""
    if patient in method.patients("train"):  # also those behind the weights it began with
        return "train"
    roles = {one.split.get(patient, NO_ROLE) for one in method.checkpoints}
    return next(role for role in (*ROLES, NO_ROLE) if role in roles)


def stopped(work: MapBuilder, report: MapReport, *, num_due: int) -> StoppedError:
    """Return the error of a stop that was asked for, with every finished map in place."""
    assert work.stop is not None
    return stopped_error(
        work.stop.signal_name or "", f" with {len(report.made)} of {num_due} maps made"
    )
