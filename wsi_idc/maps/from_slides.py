"""Source of maps: slides. Patches of a slide are read while the network computes."""

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import CheckpointError, DataError, WsiIdcError
from wsi_idc.core.progress import progress
from wsi_idc.inference.predict import BatchPredictor
from wsi_idc.inference.predictor import MPP_TOLERANCE, Predictor
from wsi_idc.maps.builder import MapBuilder
from wsi_idc.maps.disk_array import DiskArray, StoredPrediction
from wsi_idc.maps.map_reader import MAX_IMAGE_BYTES
from wsi_idc.maps.map_writer import MapReport
from wsi_idc.maps.patient_map import PatientMap, PatientPatches, SlideView
from wsi_idc.maps.plan import PlannedMap, shard, sizes_of_slides
from wsi_idc.models.checkpoint import InputSpec
from wsi_idc.runtime.prefetch import prefetch
from wsi_idc.slides.manifest import ManifestRow, read_manifest, rows_from_files
from wsi_idc.slides.masks import mask_fingerprint
from wsi_idc.slides.patches import SlidePatches
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.slides.staging import staged_slides
from wsi_idc.slides.tiling import SlideSettings, tile_slide

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlideSource:
    """Source of maps: slides. Each slide has one map.

    Attributes:
        slides: Rows of a manifest; each row has a different map name.
        settings: Settings for cutting patches.
    """

    slides: Sequence[ManifestRow]
    settings: SlideSettings

    @staticmethod
    def from_files(
        slides: Sequence[Path], manifest: Path | None, settings: SlideSettings
    ) -> "SlideSource":
        """Create a source from a manifest if one is given, else from slide files."""
        rows = read_manifest(manifest) if manifest else rows_from_files(slides)
        if settings.mask is not None and len(rows) > 1:
            raise DataError("--mask is for one slide; run the command once for each slide")
        return SlideSource(rows, settings)

    @property
    def names(self) -> list[str]:
        """Name of the map of each slide."""
        return [row.map_name for row in self.slides]

    def shard(self, index: int, count: int) -> "SlideSource":
        """Divide the slides into ``count`` shards of similar file size; return shard ``index``."""
        chosen = set(shard(sizes_of_slides(self.slides), index, count))
        return replace(self, slides=[row for row in self.slides if row.map_name in chosen])

    def validate(self, builder: MapBuilder) -> None:
        """Raise CheckpointError if checkpoints need different patches, or cannot compute CAMs."""
        spec = input_spec(builder.predictor)
        builder.validate_cam_layer(patch_px=spec.patch_px)
        builder.flag_mpp(spec.patch_px, spec.mpp)

    def plan(self, builder: MapBuilder) -> list[PlannedMap]:
        """Return the state and the size of each map; raise the errors of ``validate``.

        The tissue of each slide is segmented. If a slide cannot be used, the state is the reason.
        """
        self.validate(builder)
        return [self._plan_slide(row, builder) for row in self.slides]

    def _plan_slide(self, row: ManifestRow, builder: MapBuilder) -> PlannedMap:
        try:
            with self.open(row) as slide:
                key = self._cache_key(builder, row, slide)
                patches, _ = self._segment_and_tile(builder, row, slide, key)
        except (WsiIdcError, OSError) as error:
            return PlannedMap(row.patient, str(error), slide_name=_slide_name(row))
        return builder.plan(patches, with_image=builder.with_image and _image_fits(patches))

    def predict(
        self, builder: MapBuilder, report: MapReport
    ) -> Generator[tuple[str, Callable[[], PatientMap]], None, None]:
        """Run the network on one slide after the other; see ``MapSource.predict``."""
        slides = staged_slides(
            self.slides,
            is_needed=lambda row: self._needs_map(row, builder),
            is_stopped=lambda: bool(builder.stop),
        )

        def prepare(row: ManifestRow) -> _PreparedSlide | Exception | None:
            _, copy = next(slides)
            try:
                return None if builder.stop else self._prepare_slide(row, builder, report, copy)
            except (WsiIdcError, OSError) as error:
                return error

        spec = input_spec(builder.predictor)
        # A thread finds the tissue of the next slide while the network computes a slide.
        prepared = prefetch(prepare, self.slides)
        with (
            builder.predictor.batch_predictor(
                device_config=builder.device_config,
                batch_size=builder.batch_size,
                cam=builder.cam,
                flag_mpp=builder.flag_mpp(spec.patch_px, spec.mpp),
            ) as predict_batches,
            closing(slides),
            closing(prepared),
        ):
            for number, (row, slide) in enumerate(zip(self.slides, prepared, strict=True), 1):
                title = f"mapping {row.map_name} ({number} of {len(self.slides)})"
                try:
                    if isinstance(slide, Exception):
                        raise slide
                    make = slide and _predict_slide(slide, builder, predict_batches, title=title)
                except (WsiIdcError, OSError) as error:
                    report.record_failure(row.map_name, error)
                    continue
                if make:
                    yield row.map_name, make
                if builder.stop:
                    break
            for slide in prepared:  # after a stop, the next slide may be open
                if isinstance(slide, _PreparedSlide):
                    slide.slide.close()

    def _prepare_slide(
        self, row: ManifestRow, builder: MapBuilder, report: MapReport, copy: Path | None
    ) -> "_PreparedSlide | None":
        """Open a slide and find the positions of its patches; None if no new map is needed."""
        slide = self.open(row, copy)
        try:
            key = self._cache_key(builder, row, slide)
            if builder.select(row.map_name, key, report, data=row.slide):
                return _PreparedSlide(slide, *self._segment_and_tile(builder, row, slide, key))
        except BaseException:
            slide.close()
            raise
        slide.close()
        return None

    def _segment_and_tile(
        self, builder: MapBuilder, row: ManifestRow, slide: Slide, cache_key: dict[str, Any]
    ) -> tuple[PatientPatches, SlidePatches]:
        spec = input_spec(builder.predictor)
        patches, reader = self.tile(
            row, slide, patch_px=spec.patch_px, mpp=spec.mpp, identity=cache_key
        )
        builder.validate_cam_size(len(reader), patch_px=spec.patch_px)
        return patches, reader

    def tile(
        self, row: ManifestRow, slide: Slide, *, patch_px: int, mpp: float, identity: dict[str, Any]
    ) -> tuple[PatientPatches, SlidePatches]:
        """Find the tissue of a slide and the positions of its patches. Pixels are not read.

        Args:
            row: Row of the slide.
            slide: The slide; it must stay open while patches are read.
            patch_px: Side of a patch in px.
            mpp: Microns per px of a patch.
            identity: Entry of the provenance.

        Returns:
            The patches, and their reader.
        """
        settings = self.settings.for_slide(row)
        tiled = tile_slide(slide, settings, patch_px=patch_px, mpp=mpp)
        reader = tiled.patches
        patches = PatientPatches(
            patient=row.patient,
            slide_name=_slide_name(row),
            source="slide",
            provenance={"data": str(row.slide), "identity": identity},
            patch_px=patch_px,
            stride_px=settings.stride_px or patch_px,
            mpp=mpp,
            mpp_source="model",
            coords=reader.coords,
            row_col=reader.row_col,
            label=np.full(len(reader), -1, np.int8),
            slide=SlideView(
                *(slide.path.name, slide.mpp, slide.width, slide.height),
                *(tiled.thumbnail, tiled.tissue, slide.mpp_source, slide.bounds),
            ),
        )
        return patches, reader

    def _needs_map(self, row: ManifestRow, builder: MapBuilder) -> bool:
        try:
            with self.open(row) as slide:
                key = self._cache_key(builder, row, slide)
            return builder.select(row.map_name, key, MapReport(), data=row.slide)
        except (WsiIdcError, OSError):
            return False  # ``predict`` reports the reason

    def open(self, row: ManifestRow, copy: Path | None = None) -> Slide:
        """Open a slide; ``copy`` is a copy of its file on a faster disk."""
        return open_slide(row.slide, mpp=self.settings.for_slide(row).mpp, copy=copy)

    def _cache_key(self, builder: MapBuilder, row: ManifestRow, slide: Slide) -> dict[str, Any]:
        spec = input_spec(builder.predictor)
        return builder.cache_key(**self.data_key(row, slide, patch_px=spec.patch_px, mpp=spec.mpp))

    def data_key(
        self, row: ManifestRow, slide: Slide, *, patch_px: int, mpp: float
    ) -> dict[str, Any]:
        """Return the values of a slide and its patches that determine the content of a map."""
        settings = self.settings.for_slide(row)
        # Without a mask, the key is the same as in maps of version 0.1.0.
        frame = {"mask_frame": settings.mask_frame} if settings.mask else {}
        return {
            **frame,
            "data": slide.fingerprint(),
            "slide_mpp": slide.mpp,
            "mpp": mpp,
            "mpp_source": slide.mpp_source,
            "mask": mask_fingerprint(settings.mask),
            "min_tissue": settings.min_tissue,
            "tissue_threshold": settings.tissue_threshold,
            "min_piece_mm2": settings.min_piece_mm2,
            "min_hole_mm2": settings.min_hole_mm2,
            "stride_px": settings.stride_px or patch_px,
        }


@dataclass(frozen=True)
class _PreparedSlide:
    """An open slide, the positions of its patches, and their reader."""

    slide: Slide
    patches: PatientPatches
    reader: SlidePatches


def _predict_slide(
    prepared: _PreparedSlide, builder: MapBuilder, predict_batches: BatchPredictor, *, title: str
) -> Callable[[], PatientMap] | None:
    """Predict the patches of a slide and close the slide; return a function that builds the map.

    Return None if a stop was requested.
    """
    patches, reader = prepared.patches, prepared.reader
    builder.out.mkdir(parents=True, exist_ok=True)
    with (
        prepared.slide,
        progress(len(reader), what=title) as bar,
        closing(reader.batches(builder.batch_size)) as batches,
    ):
        keeps_image = builder.with_image and _image_fits(patches)
        pixels: Any = DiskArray(builder.out) if keeps_image else None
        stored = StoredPrediction(builder.out)
        for prediction in predict_batches(_collect_pixels(batches, pixels)):
            stored.append(prediction)
            bar.update(len(prediction.logit))
            if builder.stop:
                return None
    return lambda: builder.patient_map(patches, stored.prediction(), pixels)


def _slide_name(row: ManifestRow) -> str:
    """Return the part SLIDE of a map name PATIENT/SLIDE, or "" for the only slide of a patient."""
    return "" if row.is_only else row.slide_name


def _image_fits(patches: PatientPatches) -> bool:
    """Return whether the picture of a slide's tissue fits into a map; if not, log a warning."""
    num_bytes = 3 * math.prod(patches.shape) * patches.cell_px**2
    if num_bytes <= MAX_IMAGE_BYTES:
        return True
    reason = f"the picture of the tissue would have {num_bytes / 1e9:.1f} GB"
    logger.warning("%s: %s, so the map has no picture", patches.map_name, reason)
    return False


def _collect_pixels(
    batches: Iterator[NDArray[np.uint8]], pixels: DiskArray | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the batches, and append each batch to ``pixels``; None means a map without picture."""
    for patches in batches:
        if pixels is not None:
            pixels.append(patches)
        yield patches


def input_spec(predictor: Predictor) -> InputSpec:
    """Return the input settings of all networks.

    Raises:
        CheckpointError: The networks take patches of different sizes.
    """
    first, *others = predictor.checkpoints
    for checkpoint in others:
        spec, expected = checkpoint.input, first.input
        is_same_scale = abs(expected.mpp / spec.mpp - 1) <= MPP_TOLERANCE
        if expected.patch_px != spec.patch_px or not is_same_scale:
            raise CheckpointError(
                f"{checkpoint.source} and {first.source} take patches of different sizes: "
                f"{spec.patch_px} px at {spec.mpp:g} um/px, and {expected.patch_px} px at "
                f"{expected.mpp:g} um/px; all models of an ensemble must take the same size"
            )
    return first.input
