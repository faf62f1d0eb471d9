"""Maps of many: which patients or slides, which part of them, and what it would take."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DataError, WsiIdcError
from wsi_idc.core.files import safe_filename
from wsi_idc.data.pack import Pack
from wsi_idc.geometry.grid import shape_of
from wsi_idc.maps.builder import MapBuilder, MapReport
from wsi_idc.maps.from_pack import build_maps, validate_job
from wsi_idc.maps.from_pack import cache_key as identity_of_pack
from wsi_idc.maps.from_slides import (
    SlideSettings,
    build_slide_maps,
    cache_key,
    fits_in_memory,
    open_row,
    segment_and_tile,
)
from wsi_idc.maps.from_slides import validate_job as check_slides_ahead
from wsi_idc.maps.sharding import shard, sizes_of_patients, sizes_of_slides
from wsi_idc.models.checkpoint import InputSpec
from wsi_idc.slides.manifest import ManifestRow, read_manifest

logger = logging.getLogger(__name__)
TO_DO, DONE = "to do", "done"
# Of a map: the patches, the file made of them in memory, and its bytes.
_COPIES_IN_MEMORY = 3


@dataclass(frozen=True)
class PlannedMap:
    """What would become of a patient.

    Attributes:
        patient: Id.
        state: "to do", "done", or why not.
        num_patches: Of its map.
        disk_mb: Of its map.
        memory_mb: While it is made, beside the model.
    """

    patient: str
    state: str
    num_patches: int = 0
    disk_mb: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_mappable(self) -> bool:
        """Whether the patient has a map, or gets one."""
        return self.state in (TO_DO, DONE)


@dataclass(frozen=True)
class PackMapJob:
    """Maps of patients of a pack."""

    work: MapBuilder
    pack: Pack
    patients: Sequence[str]

    def part(self, index: int, count: int) -> "PackMapJob":
        """Return the ``index``-th of ``count`` parts with about as many patches each."""
        return replace(
            self, patients=shard(sizes_of_patients(self.pack, self.patients), index, count)
        )

    def run(self) -> MapReport:
        """Make the maps."""
        return build_maps(self.work, self.pack, list(dict.fromkeys(self.patients)))

    def plan(self) -> list[PlannedMap]:
        """Return what would be done.

        Raises:
            CheckpointError: A checkpoint does not fit the data, or has no such CAM.
        """
        validate_job(self.work, self.pack, self.patients)
        identity, cells = identity_of_pack(self.work, self.pack), self.pack.cells()
        side = self.pack.info.patch_px
        states = {
            patient: _state(self.work, patient, identity, self.pack.path)
            for patient in dict.fromkeys(self.patients)
        }
        return [
            _planned(self.work, patient, state, cells[self.pack.rows_of(patient)], side, side)
            for patient, state in states.items()
        ]


@dataclass(frozen=True)
class SlideMapJob:
    """Maps of slides."""

    work: MapBuilder
    settings: SlideSettings
    slides: Sequence[ManifestRow]

    @staticmethod
    def of(
        work: MapBuilder, settings: SlideSettings, *, slides: Sequence[Path], manifest: Path | None
    ) -> "SlideMapJob":
        """Return the run of slides that are named, or listed in a manifest.

        Raises:
            DataError: Two slides would have one map, a mask is given for several, or the manifest
                makes no sense.
        """
        rows = read_manifest(manifest) if manifest else rows_of(slides)
        if settings.mask is not None and len(rows) > 1:
            raise DataError("--mask is of one slide; map the others by themselves")
        return SlideMapJob(work, settings, rows)

    def part(self, index: int, count: int) -> "SlideMapJob":
        """Return the ``index``-th of ``count`` parts with about as many bytes each."""
        by_name = {row.patient: row for row in self.slides}
        chosen = shard(sizes_of_slides(self.slides), index, count)
        return replace(self, slides=[by_name[name] for name in chosen])

    def run(self) -> MapReport:
        """Make the maps."""
        return build_slide_maps(self.work, self.slides, self.settings)

    def plan(self) -> list[PlannedMap]:
        """Return what would be done; every slide is opened for it.

        Raises:
            CheckpointError: The checkpoints want patches of different sizes, or have no such CAM.
        """
        spec = check_slides_ahead(self.work)
        return [self._plan(row, spec) for row in self.slides]

    def _plan(self, row: ManifestRow, spec: InputSpec) -> PlannedMap:
        try:
            with open_row(row, self.settings) as slide:
                identity = cache_key(self.work, slide, self.settings, spec)
                _, patches = segment_and_tile(slide, self.settings, spec)
                self.work.validate_cam_size(len(patches), patch_px=spec.patch_px)
        except (WsiIdcError, OSError) as error:
            return PlannedMap(row.patient, str(error))
        state = _state(self.work, row.patient, identity, row.slide)
        sides = spec.patch_px, self.settings.stride_px or spec.patch_px
        keep = self.work.with_image and fits_in_memory(row.patient, patches.row_col, *sides)
        work = replace(self.work, with_image=keep)
        return _planned(work, row.patient, state, patches.row_col, *sides)


def rows_of(slides: Sequence[Path]) -> list[ManifestRow]:
    """Return slides as rows of a manifest, each named by its file."""
    rows: dict[str, ManifestRow] = {}
    for path in slides:
        name = safe_filename(path.stem)
        if name in rows:
            raise DataError(
                f"{rows[name].slide} and {path} would both be {name}.h5; name them in a --manifest"
            )
        rows[name] = ManifestRow(path, name, None)
    return list(rows.values())


def _state(work: MapBuilder, patient: str, identity: dict[str, Any], data: Path) -> str:
    report = MapReport()
    if work.needs_rebuild(patient, identity, report, data=data):
        return TO_DO
    return report.failed.get(patient, DONE)


def _planned(
    work: MapBuilder,
    patient: str,
    state: str,
    row_col: NDArray[np.int32],
    patch_px: int,
    cell_px: int,
) -> PlannedMap:
    rows, cols = shape_of(row_col)
    num_bytes = len(row_col) * 64 + rows * cols * 32
    pixels = len(row_col) * patch_px**2 * 3 if work.with_image else 0
    if work.cam is not None:
        height, width = work.cam_shape(patch_px=patch_px)
        num_bytes += 4 * height * width * (len(row_col) + rows * cols)
    if work.with_image:
        num_bytes += 3 * cell_px**2 * rows * cols
    return PlannedMap(
        patient,
        state,
        len(row_col),
        num_bytes / 1e6,
        (_COPIES_IN_MEMORY * num_bytes + 2 * pixels) / 1e6,
    )


def _text_of(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: not a regular file; give a text file with an id on each line")
    return path.read_text(encoding="utf-8-sig")


def read_patients(path: Path) -> list[str]:
    """Return the ids in a text file, one a line; what comes after # is a comment.

    Raises:
        DataError: The file cannot be read or lists no one.
    """
    try:
        lines = _text_of(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"{path}: {reason}; give a text file with an id on each line") from None
    # Within a word it is part of an id.
    ids = [found for line in lines if (found := re.split(r"(?:^|\s)#", line)[0].strip())]
    if not ids:
        raise DataError(f"{path}: lists no patient; give an id on each line")
    return ids
