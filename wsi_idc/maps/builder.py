"""Build all maps of a source (a pack or slides); keep maps that are up to date."""

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import NO_ROLE, PREDICT_BATCH_SIZE, ROLES
from wsi_idc.core.errors import CheckpointError, MapError, WsiIdcError
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.core.provenance import provenance
from wsi_idc.data.artifacts import FLAGS
from wsi_idc.data.patch_flags import can_flag
from wsi_idc.inference.predict import RawPrediction
from wsi_idc.inference.predictor import Predictor
from wsi_idc.inference.probability import smoothed_probability
from wsi_idc.maps.map_reader import FORMAT_VERSION, MAX_CAM_BYTES, MAX_CAM_SIDE, has_flags, map_path
from wsi_idc.maps.map_writer import LOCK_TIMEOUT_SECONDS, MapReport, image_bytes, map_writers
from wsi_idc.maps.patient_file import write_patient_file
from wsi_idc.maps.patient_map import PatientMap, PatientPatches
from wsi_idc.maps.plan import DONE, TO_DO, PlannedMap, map_state
from wsi_idc.models.cam import CamSpec
from wsi_idc.models.cam_layers import cam_grid, default_cam_layer
from wsi_idc.models.registry import architecture
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.signals import StopRequest, stopped_error

logger = logging.getLogger(__name__)

# Memory for parts of the CAMs and the picture while a map is written.
_BUFFER_BYTES = 2**26


class MapSource(Protocol):
    """Source of maps: the patients of a pack, or a list of slides."""

    @property
    def names(self) -> Sequence[str]:
        """Unique names of all maps of the source: PATIENT or PATIENT/SLIDE."""

    def validate(self, builder: "MapBuilder") -> None:
        """Raise an error if the settings of ``builder`` do not fit the source."""

    def predict(
        self, builder: "MapBuilder", report: MapReport
    ) -> Generator[tuple[str, Callable[[], PatientMap]], None, None]:
        """Run the network on the patches of each map that must be built.

        The generator ends early if a stop is requested. A map that is up to date, or that
        cannot be built, is recorded in ``report`` as kept or failed.

        Yields:
            Name of the map, and a function that builds the map. The function may be called in
            another thread.
        """


@dataclass(frozen=True)
class MapBuilder:
    """Settings for building maps. All maps of one call of ``build`` have the same settings.

    Attributes:
        predictor: Predictor with checkpoints, test-time augmentation and smoothing.
        device_config: Device and precision of the computation.
        out: Folder into which the maps are written.
        cam: Settings of the CAMs; None means maps without CAMs.
        with_image: Whether a map includes the picture of the tissue, stitched from the patches.
        batch_size: Number of patches in a batch.
        overwrite: Whether all maps are built again and existing files are replaced.
        exclude_flagged: Whether areas and regions leave out the patches that have a flag.
        stop: Request to stop early. Maps with complete predictions are written before the stop.
    """

    predictor: Predictor
    device_config: DeviceConfig
    out: Path
    cam: CamSpec | None = field(default_factory=CamSpec)
    with_image: bool = True
    batch_size: int = PREDICT_BATCH_SIZE
    overwrite: bool = False
    exclude_flagged: bool = False
    stop: StopRequest | None = None

    def build(self, source: MapSource) -> MapReport:
        """Write all maps of a source, and a patient file for each patient with several slides.

        An existing map is kept if it was made with the same model, settings and data. A map with
        another model, settings or data is replaced only with ``overwrite``. If a map cannot be
        built, the report records the reason, and the other maps are built.

        Raises:
            CheckpointError: A checkpoint does not fit the patches, or cannot compute the CAM.
            DataError: A patient is missing in the source, or a patient id cannot be a file name.
            MapError: The CAMs of a patient are too large for a map.
            DiskFullError: The disk is full.
            StoppedError: A stop was requested. Another call of ``build`` makes the missing maps.
        """
        source.validate(self)
        for name in source.names:
            map_path(self.out, name)
        patients = {name.partition("/")[0] for name in source.names}
        seen = sorted(self.predictor.patients("train") & patients)
        if seen:
            num_seen = f"{len(seen)} of these patients (the first is {seen[0]})"
            logger.warning(
                "the model was trained on %s: maps of training patients show fewer errors than "
                "maps of other patients",
                num_seen,
            )
        else:
            logger.info("the model was trained on none of these patients")
        if self.predictor.novelty_limit(1) is None:
            logger.info(
                "the checkpoint has no novelty model, so maps do not show whether tissue is unlike "
                "the training data; wsi-idc train adds one"
            )
        report = MapReport()
        self.device_config.throughput.start()
        with (
            map_writers(self.out, report) as submit,
            closing(source.predict(self, report)) as predicted,
        ):
            for name, make in predicted:
                submit(name, make)
        self._write_patient_files(report)
        num_open = len(source.names) - len(report.kept) - len(report.failed)
        if self.stop and len(report.made) < num_open:
            progress = f" with {len(report.made)} of {num_open} maps made"
            raise stopped_error(self.stop.signal_name or "", progress)
        self.device_config.throughput.log("mapped")
        return report

    def _write_patient_files(self, report: MapReport) -> None:
        """Write a patient file for each patient of ``report`` with several slides."""
        names = [name for name in (*report.made, *report.kept) if "/" in name]
        for patient in dict.fromkeys(name.partition("/")[0] for name in names):
            write = partial(write_patient_file, map_path(self.out, patient))
            try:
                retry_while_busy(write, timeout=LOCK_TIMEOUT_SECONDS)
            except (WsiIdcError, OSError) as error:
                report.record_failure(patient, error)

    def select(
        self, name: str, cache_key: dict[str, Any], report: MapReport, *, data: Path
    ) -> bool:
        """Return whether a map must be built.

        If the result is False, the map is recorded in ``report`` as kept or failed.

        The arguments ``name``, ``cache_key`` and ``data`` are the same as in ``plan.map_state``.
        """
        state = map_state(self.out, name, cache_key, data=str(data), overwrite=self.overwrite)
        if state == DONE:
            report.kept[name] = map_path(self.out, name)
            spec = self.predictor.checkpoints[0].input
            if can_flag(spec.patch_px, mpp=spec.mpp) and not has_flags(report.kept[name]):
                report.without_flags.append(name)
        elif state != TO_DO:
            report.failed[name] = state
        return state == TO_DO

    def plan(self, patches: PatientPatches, *, with_image: bool) -> PlannedMap:
        """Return the state and the estimated size of a map."""
        key, data = patches.provenance["identity"], patches.provenance["data"]
        name = patches.map_name
        num_patches, num_cells = len(patches.row_col), math.prod(patches.shape)
        num_bytes = num_patches * 64 + num_cells * 32
        memory_bytes = 2 * num_bytes + _BUFFER_BYTES
        if self.cam is not None:
            cam_cells = math.prod(self._cam_shape(patch_px=patches.patch_px))
            num_bytes += 4 * cam_cells * 2 * num_patches  # empty cells of the mosaic are compressed
        if with_image:
            num_bytes += image_bytes(patches)
        return PlannedMap(
            patient=patches.patient,
            state=map_state(self.out, name, key, data=data, overwrite=self.overwrite),
            num_patches=num_patches,
            disk_mb=num_bytes / 1e6,
            memory_mb=memory_bytes / 1e6,
            slide_name=patches.slide_name,
        )

    def cache_key(self, **data: Any) -> dict[str, Any]:
        """Return the values that determine the content of a map, as a dict of JSON values.

        Args:
            **data: Values that depend on the source, such as the fingerprint of a slide.
        """
        # Without this setting, the key is the same as in maps of version 0.1.0.
        excluded = {"exclude_flagged": True} if self.exclude_flagged else {}
        return {
            **self.predictor.cache_key(),
            **data,
            "precision": self.device_config.precision,
            "image": self.with_image,
            "cam": None if self.cam is None else {**vars(self.cam), "layer": self._cam_layer},
            "format_version": FORMAT_VERSION,
            **excluded,
        }

    def flag_mpp(self, patch_px: int, mpp: float) -> float | None:
        """Return ``mpp`` if the patches are large enough for quality flags, else None.

        Raises:
            MapError: The patches are too small, and ``exclude_flagged`` needs quality flags.
        """
        if can_flag(patch_px, mpp=mpp):
            return mpp
        if self.exclude_flagged:
            raise MapError(
                f"patches of {patch_px} px at {mpp:g} um/px are too small for quality flags; "
                "leave out --exclude-flagged"
            )
        return None

    @property
    def _cam_layer(self) -> str:
        """Name of the layer of the CAMs. For an ensemble, this is a layer of the first network."""
        if self.cam is not None and self.cam.layer is not None:
            return self.cam.layer
        first = self.predictor.checkpoints[0]
        return default_cam_layer(architecture(first.architecture), first.input.input_px)

    def _cam_shape(self, *, patch_px: int) -> tuple[int, int]:
        first = self.predictor.checkpoints[0]
        size = first.input.input_px or patch_px
        return cam_grid(architecture(first.architecture), size, self._cam_layer)

    def validate_cam_layer(self, *, patch_px: int) -> None:
        """Raise CheckpointError if a CAM cannot be computed, or has too many cells for a map."""
        if self.cam is None:
            return
        self.predictor.validate_cam(self.cam, patch_px=patch_px)
        rows, cols = self._cam_shape(patch_px=patch_px)
        if max(rows, cols) > MAX_CAM_SIDE:
            raise CheckpointError(
                f"the CAM at layer {self._cam_layer} has {rows}x{cols} cells; a map can have at "
                f"most {MAX_CAM_SIDE} cells per side; give a later --cam-layer"
            )

    def validate_cam_size(self, num_patches: int, *, patch_px: int) -> None:
        """Raise MapError if the CAMs of ``num_patches`` patches are too large for a map."""
        if self.cam is None:
            return
        num_bytes = 4 * num_patches * math.prod(self._cam_shape(patch_px=patch_px))
        if num_bytes > MAX_CAM_BYTES:
            raise MapError(
                f"the CAMs of {num_patches} patches at layer {self._cam_layer} take "
                f"{num_bytes / 1e9:.0f} GB, which is too large for a map; give a later "
                "--cam-layer, or --no-cam"
            )

    def patient_map(
        self, patches: PatientPatches, prediction: RawPrediction, pixels: NDArray[np.uint8] | None
    ) -> PatientMap:
        """Build the map of a patient.

        Args:
            patches: Patches of the patient.
            prediction: Predictions of all patches of the patient.
            pixels: Pixels of the patches, shape (N, patch_px, patch_px, 3), uint8. With None, the
                map has no picture of the tissue.
        """
        predictor, cam = self.predictor, self.cam or CamSpec()
        checkpoint, smoothing = predictor.checkpoints[0], predictor.smoothing
        values = vars(predictor.aggregate(prediction.logit)) | {"threshold": predictor.threshold}
        if smoothing is not None:
            unsmoothed = values["probability"]
            smoothed = smoothed_probability(
                unsmoothed,
                np.zeros(len(patches.row_col), np.int64),  # all patches have the same slide
                patches.row_col,
                smoothing=smoothing,
                cell_um=patches.cell_px * patches.mpp,
            )
            values |= {"unsmoothed": unsmoothed, "unsmoothed_threshold": values["threshold"]}
            values |= {"probability": smoothed, "threshold": smoothing.threshold}
            values["smoothing"] = smoothing.record()
        return PatientMap(
            **vars(patches) | values | {"provenance": provenance(**patches.provenance)},
            class_names=checkpoint.class_names,
            temperature=predictor.temperature,
            model={**predictor.summary(), "role_of_patient": _role(predictor, patches.patient)},
            novelty=predictor.novelty(prediction.distance),
            # The argument is the number of patches that would cover the area without overlap.
            novelty_limit=predictor.novelty_limit(
                max(1, round(len(patches.row_col) * (patches.cell_px / patches.patch_px) ** 2))
            ),
            flags=prediction.flags,
            flag_bits={} if prediction.flags is None else dict(FLAGS),
            exclude_flagged=self.exclude_flagged,
            cam=prediction.cam,
            cam_layer=self._cam_layer,
            cam_method=cam.method,
            cam_class=checkpoint.class_names[cam.class_index],
            patches=pixels,
        )


def _role(predictor: Predictor, patient: str) -> str:
    """Return a patient's role: "train", "val", "test" or ``NO_ROLE``.

    If the checkpoints have different roles for the patient, return the first in this order.
    """
    if patient in predictor.patients("train"):  # includes patients of the pretraining
        return "train"
    roles = {checkpoint.split.get(patient, NO_ROLE) for checkpoint in predictor.checkpoints}
    return next(role for role in (*ROLES, NO_ROLE) if role in roles)
