"""Make the maps of slides: one after another, patches read while the last ones are computed."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import CheckpointError, SlideError, WsiIdcError
from wsi_idc.core.files import sha256
from wsi_idc.core.progress import progress
from wsi_idc.geometry.grid import shape_of
from wsi_idc.inference.predict import BatchPredictor, RawPrediction
from wsi_idc.inference.predictor import MPP_TOLERANCE
from wsi_idc.maps.builder import MapBuilder, MapReport, stopped
from wsi_idc.maps.map_reader import map_path
from wsi_idc.maps.patient_map import PatientMap, SlideView
from wsi_idc.maps.writer_pool import MapWriterPool, record_failure
from wsi_idc.models.checkpoint import InputSpec
from wsi_idc.slides.manifest import ManifestRow
from wsi_idc.slides.patches import MIN_TISSUE, SlidePatches
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.slides.tissue import find_tissue, read_mask, resize_mask

logger = logging.getLogger(__name__)

# Tissue is stitched in memory, of several slides at a time: fine patches of whole ones would take
# more than there is.
_MAX_IMAGE_BYTES = 2**28


@dataclass(frozen=True)
class SlideSettings:
    """How patches are cut from slides.

    Attributes:
        mpp: Microns per level-0 px of every slide, instead of what files or list state.
        mask: A picture of where tissue is, for a single slide; None finds it.
        min_tissue: Least share of tissue in a patch, 0..1; 0 takes every patch, with a mask each
            that has any of it.
        stride_px: From one patch to the next, in px of the model; None is a whole patch.
    """

    mpp: float | None = None
    mask: Path | None = None
    min_tissue: float = MIN_TISSUE
    stride_px: int | None = None


def build_slide_maps(
    work: MapBuilder, slides: Sequence[ManifestRow], settings: SlideSettings
) -> MapReport:
    """Write the map of each slide into the folder ``work.out``, unless it is there already.

    A map is kept only where the same method, settings and file made it. A slide whose map cannot
    be made is set aside with the reason.

    Raises:
        CheckpointError: The checkpoints want patches of different sizes, or have no such CAM.
        DataError: A patient's id cannot be a file name.
        StoppedError: ``work.stop`` was set; the finished maps are there, and the same call goes on.
    """
    spec = validate_job(work)
    for row in slides:
        map_path(work.out, row.patient)
    work.warn_training_patients([row.patient for row in slides])
    report = MapReport()
    work.compute.usage.begin()
    lent = work.method.batch_predictor(
        device_config=work.compute, batch_size=work.batch_size, cam=work.cam
    )
    with MapWriterPool(work, report) as writers, lent as predict:
        for number, row in enumerate(slides):
            if work.stop:
                break
            place = (number + 1, len(slides))
            try:
                _make(work, row, settings, spec, predict, writers, report, place=place)
            except (WsiIdcError, OSError) as error:
                record_failure(report, row.patient, error)
    if work.stop and len(report.made) + len(report.kept) + len(report.failed) < len(slides):
        raise stopped(work, report, num_due=len(slides) - len(report.kept))
    work.compute.usage.log("mapped")
    return report


def validate_job(work: MapBuilder) -> InputSpec:
    """Return what patches the method's checkpoints take; raise where no slide can be mapped.

    Raises:
        CheckpointError: They want patches of different sizes, or have no such CAM.
    """
    spec = input_of(work)
    work.check_cam(patch_px=spec.patch_px)
    return spec


def input_of(work: MapBuilder) -> InputSpec:
    """Return what patches the method's checkpoints take.

    Raises:
        CheckpointError: They differ.
    """
    first, *others = work.method.checkpoints
    for one in others:
        ours, theirs = first.input, one.input
        same_scale = abs(ours.mpp / theirs.mpp - 1) <= MPP_TOLERANCE
        if ours.patch_px != theirs.patch_px or not same_scale:
            raise CheckpointError(
                f"{one.source} and {first.source} take patches of other sizes, {theirs.patch_px} "
                f"px of {theirs.mpp:g} um and {ours.patch_px} px of {ours.mpp:g} um; an ensemble "
                "needs the same"
            )
    return first.input


def open_row(row: ManifestRow, settings: SlideSettings) -> Slide:
    """Open a slide of a list, at the mpp that is said for it."""
    return open_slide(row.slide, mpp=settings.mpp or row.mpp)


def cache_key(
    work: MapBuilder, slide: Slide, settings: SlideSettings, spec: InputSpec
) -> dict[str, Any]:
    """Return all that decides what stands in a slide's map, JSON-ready."""
    return work.identity(
        data=slide.fingerprint(),
        slide_mpp=slide.mpp,
        mpp=spec.mpp,
        mpp_source=slide.mpp_source,
        mask=None if settings.mask is None else _fingerprint_of(settings.mask),
        min_tissue=settings.min_tissue,
        stride_px=settings.stride_px or spec.patch_px,
    )


def _fingerprint_of(mask: Path) -> str:
    if not mask.is_file():  # a pipe would be waited for
        what = "not a regular file" if mask.exists() else "no such file"
        raise SlideError(f"{mask}: {what}; give a mask as PNG")
    return sha256(mask)


def _make(
    work: MapBuilder,
    row: ManifestRow,
    settings: SlideSettings,
    spec: InputSpec,
    predict: BatchPredictor,
    writers: MapWriterPool,
    report: MapReport,
    *,
    place: tuple[int, int],
) -> None:
    """Make the map of one slide, if it is due."""
    with open_row(row, settings) as slide:
        identity = cache_key(work, slide, settings, spec)
        if not work.needs_rebuild(row.patient, identity, report, data=row.slide):
            return
        view, patches = segment_and_tile(slide, settings, spec)
        work.validate_cam_size(len(patches), patch_px=spec.patch_px)
        work.out.mkdir(parents=True, exist_ok=True)
        sides = spec.patch_px, settings.stride_px or spec.patch_px
        keep = work.with_image and fits_in_memory(row.patient, patches.row_col, *sides)
        pixels: list[NDArray[np.uint8]] = []
        what = f"mapping {row.patient} ({place[0]} of {place[1]})"
        with (
            progress(len(patches), what=what) as bar,
            closing(patches.batches(work.batch_size)) as batches,
        ):
            parts = []
            coming = _kept(batches, pixels if keep else None)
            for part in predict(coming):
                parts.append(part)
                bar.update(len(part.logit))
                if work.stop:
                    return
    make = partial(
        _content, work, row, view, patches, parts, pixels, settings=settings, identity=identity
    )
    writers.submit(row.patient, make)


def segment_and_tile(
    slide: Slide, settings: SlideSettings, spec: InputSpec
) -> tuple[SlideView, SlidePatches]:
    """Return a slide seen whole, and the patches of it that a method wants to see.

    Raises:
        SlideError: The slide is damaged, too coarse, or has no tissue; or the mask is none of it.
    """
    thumbnail, tissue = find_tissue(slide)
    mask = tissue if settings.mask is None else read_mask(settings.mask, slide=slide)
    takes_all = settings.mask is None and settings.min_tissue == 0
    patches = SlidePatches(
        slide,
        patch_px=spec.patch_px,
        mpp=spec.mpp,
        stride_px=settings.stride_px,
        tissue=None if takes_all else mask,
        min_tissue=settings.min_tissue,
    )
    view = SlideView(
        name=slide.path.name,
        mpp=slide.mpp,
        width=slide.width,
        height=slide.height,
        thumbnail=thumbnail,
        tissue=resize_mask(mask, tissue.shape),
    )
    return view, patches


def fits_in_memory(patient: str, row_col: NDArray[np.int32], patch_px: int, cell_px: int) -> bool:
    """Return whether patches and stitched tissue may be in memory; say in the log where not.

    Args:
        patient: Id.
        row_col: Cells that have a patch, shape (N, 2).
        patch_px: Side of a patch.
        cell_px: Side of a cell of the tissue.
    """
    rows, cols = shape_of(row_col)
    num_bytes = 3 * max(len(row_col) * patch_px**2, rows * cols * cell_px**2)
    if num_bytes <= _MAX_IMAGE_BYTES:
        return True
    logger.warning(
        "%s: its patches would take %.1f GB in memory, so the tissue is left out of the map",
        patient,
        num_bytes / 1e9,
    )
    return False


def _kept(
    batches: Iterator[NDArray[np.uint8]], pixels: list[NDArray[np.uint8]] | None
) -> Iterator[NDArray[np.uint8]]:
    """Pass batches on, and keep them where ``pixels`` is a list."""
    for patches in batches:
        if pixels is not None:
            pixels.append(patches)
        yield patches


def _content(
    work: MapBuilder,
    row: ManifestRow,
    view: SlideView,
    patches: SlidePatches,
    parts: list[RawPrediction],
    pixels: list[NDArray[np.uint8]],
    *,
    settings: SlideSettings,
    identity: dict[str, Any],
) -> PatientMap:
    spec = input_of(work)
    stride_px = settings.stride_px or spec.patch_px
    return work.content(
        row.patient,
        RawPrediction.concatenate(parts),
        row_col=patches.row_col,
        patch_um=stride_px * spec.mpp,
        data=row.slide,
        identity=identity,
        source="slide",
        patch_px=spec.patch_px,
        stride_px=stride_px,
        mpp=spec.mpp,
        mpp_source=identity["mpp_source"],
        coords=patches.coords,
        label=np.full(len(patches), -1, np.int8),
        slide=view,
        patches=np.concatenate(pixels) if pixels else None,
    )
