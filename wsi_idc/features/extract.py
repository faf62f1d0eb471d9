"""Compute features of the patches of patients or slides, and write one file for each of them."""

import logging
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from wsi_idc.core.constants import PREDICT_BATCH_SIZE
from wsi_idc.core.errors import DiskFullError, MapError, WsiIdcError
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.core.progress import progress
from wsi_idc.features.encoder import Encoder
from wsi_idc.features.feature_file import (
    FORMAT_VERSION,
    pt_path,
    read_identity,
    write_features,
    write_pt,
)
from wsi_idc.inference.features import ExtractFeatures, FeatureBatch, feature_extractor
from wsi_idc.maps.disk_array import DiskArray
from wsi_idc.maps.from_pack import PackSource
from wsi_idc.maps.from_slides import SlideSource
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.map_writer import LOCK_TIMEOUT_SECONDS
from wsi_idc.maps.patient_map import PatientPatches
from wsi_idc.maps.plan import describe_changes
from wsi_idc.runtime.device import DeviceConfig
from wsi_idc.runtime.signals import StopRequest, raise_if_stopped
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.staging import staged_slides

logger = logging.getLogger(__name__)


@dataclass
class FeatureReport:
    """Result of ``FeatureExtraction.run``. The keys are names of files: PATIENT or PATIENT/SLIDE.

    Attributes:
        made: New files.
        kept: Existing files that are up to date.
        failed: Reasons why files were not written.
        patches: Number of patches in each new file.
    """

    made: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureExtraction:
    """Settings for computing features. All files of one call of ``run`` have the same settings.

    Attributes:
        encoder: Encoder that computes the features.
        device_config: Device and precision.
        out: Folder into which the files are written.
        batch_size: Number of patches in a batch.
        with_pt: Whether a .pt file is written for each HDF5 file.
        overwrite: Whether existing files are replaced.
        stop: Request to stop early.
    """

    encoder: Encoder
    device_config: DeviceConfig
    out: Path
    batch_size: int = PREDICT_BATCH_SIZE
    with_pt: bool = False
    overwrite: bool = False
    stop: StopRequest | None = None

    def run(self, source: PackSource | SlideSource) -> FeatureReport:
        """Write the features of all patients or slides of a source.

        An existing file is kept if the same encoder, settings and data made it. Any other existing
        file is replaced only with ``overwrite``. If features cannot be computed, the report records
        the reason, and the other features are computed.

        Raises:
            DataError: A patient is missing in the source, or a patient id cannot be a file name.
            DiskFullError: The disk is full.
            StoppedError: A stop was requested. Another call of ``run`` writes the missing files.
        """
        report = FeatureReport()
        for name in source.names:
            map_path(self.out, name)
        with feature_extractor(
            self.encoder.classifier, device_config=self.device_config, batch_size=self.batch_size
        ) as extract:
            if isinstance(source, PackSource):
                self._run_pack(source, extract, report)
            else:
                self._run_slides(source, extract, report)
        num_open = len(source.names) - len(report.kept) - len(report.failed)
        if len(report.made) < num_open:
            raise_if_stopped(self.stop, f" with {len(report.made)} of {num_open} files written")
        return report

    def _run_pack(
        self, source: PackSource, extract: ExtractFeatures, report: FeatureReport
    ) -> None:
        identity = self._identity(source.data_key)
        for number, name in enumerate(source.names, start=1):
            if self.stop:
                return
            try:
                if self._is_needed(name, identity, report):
                    rows = source.rows(name)
                    starts = range(0, len(rows), self.batch_size)
                    parts = (rows[start : start + self.batch_size] for start in starts)
                    batches = extract(parts, source.pack.read)
                    patches = source.patches(name, identity=identity)
                    title = f"{name} ({number} of {len(source.names)})"
                    self._write(name, patches, batches, report, title=title)
            except (WsiIdcError, OSError) as error:
                _record_failure(report, name, error)

    def _run_slides(
        self, source: SlideSource, extract: ExtractFeatures, report: FeatureReport
    ) -> None:
        slides = staged_slides(
            source.slides,
            is_needed=lambda row: self._needs_slide(source, row),
            is_stopped=lambda: bool(self.stop),
        )
        with closing(slides):
            for number, (row, copy) in enumerate(slides, start=1):
                if self.stop:
                    return
                title = f"{row.map_name} ({number} of {len(source.slides)})"
                try:
                    self._run_slide(source, row, copy, extract, report, title=title)
                except (WsiIdcError, OSError) as error:
                    _record_failure(report, row.map_name, error)

    def _run_slide(
        self,
        source: SlideSource,
        row: ManifestRow,
        copy: Path | None,
        extract: ExtractFeatures,
        report: FeatureReport,
        *,
        title: str,
    ) -> None:
        size: dict[str, Any] = {"patch_px": self.encoder.patch_px, "mpp": self.encoder.mpp}
        with source.open(row, copy) as slide:
            identity = self._identity(source.data_key(row, slide, **size))
            if not self._is_needed(row.map_name, identity, report):
                return
            patches, reader = source.tile(row, slide, **size, identity=identity)
            with closing(reader.batches(self.batch_size)) as pixels:
                self._write(row.map_name, patches, extract(pixels), report, title=title)

    def _needs_slide(self, source: SlideSource, row: ManifestRow) -> bool:
        size: dict[str, Any] = {"patch_px": self.encoder.patch_px, "mpp": self.encoder.mpp}
        try:
            with source.open(row) as slide:
                identity = self._identity(source.data_key(row, slide, **size))
            return self._is_needed(row.map_name, identity, FeatureReport())
        except (WsiIdcError, OSError):
            return False  # ``_run_slides`` reports the reason

    def _identity(self, data_key: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **data_key,
            "encoder": self.encoder.fingerprint,
            "patch_px": self.encoder.patch_px,
            "precision": self.device_config.precision,
            "format_version": FORMAT_VERSION,
        }

    def _is_needed(self, name: str, identity: Mapping[str, Any], report: FeatureReport) -> bool:
        """Return whether a file must be written; if it is up to date, record it as kept."""
        path = map_path(self.out, name)
        if self.overwrite:
            return True
        old = read_identity(path)
        if old is None:
            return True
        if changes := describe_changes(old, identity):
            raise MapError(
                f"{path} was made with another {changes}; --overwrite replaces it, another --out "
                "keeps both"
            )
        if self.with_pt and not pt_path(self.out, name).exists():
            return True
        report.kept[name] = path
        return False

    def _write(
        self,
        name: str,
        patches: PatientPatches,
        batches: Generator[FeatureBatch, None, None],
        report: FeatureReport,
        *,
        title: str,
    ) -> None:
        """Compute and write the features of a patient or slide; a stop request ends this early."""
        path = map_path(self.out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = DiskArray(path.parent)
        num = len(patches.coords)
        with progress(num, what=f"features of {title}") as bar, closing(batches):
            for batch in batches:
                stored.append(batch.features)
                bar.update(len(batch.features))
                if self.stop:
                    return
        writers = [partial(write_features, path, patches, stored, self.encoder)]
        tensor_path = pt_path(self.out, name)
        if self.with_pt:  # first, because the HDF5 file marks the work as done
            writers.insert(0, partial(write_pt, tensor_path, stored))
        else:  # an old .pt file may have the features of another encoder
            tensor_path.unlink(missing_ok=True)
        for write in writers:
            retry_while_busy(write, timeout=LOCK_TIMEOUT_SECONDS)
        report.made[name], report.patches[name] = path, num


def _record_failure(report: FeatureReport, name: str, error: Exception) -> None:
    if isinstance(error, DiskFullError):
        raise error
    report.failed[name] = str(error)
    logger.info("no features of %s; the reason is in the report at the end", name)
