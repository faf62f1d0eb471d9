"""Write map files (HDF5) in threads, and report the result for each map."""

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.errors import DiskFullError, WsiIdcError
from wsi_idc.core.files import FileVersion, atomic_write, file_version
from wsi_idc.core.hdf5 import create_hdf5
from wsi_idc.core.hdf5_items import create_attributes, create_dataset
from wsi_idc.core.locks import retry_while_busy
from wsi_idc.geometry.grid import cell_centers_um, mosaic, scatter_to_grid
from wsi_idc.maps.cohort import MapSummary, summarize
from wsi_idc.maps.map_reader import FORMAT, FORMAT_VERSION, map_path
from wsi_idc.maps.patient_map import PatientMap, PatientPatches, SlideView
from wsi_idc.runtime.prefetch import rebatch

logger = logging.getLogger(__name__)

SubmitMap = Callable[[str, Callable[[], PatientMap]], None]
# On a slow disk, a small map waits for fsync for most of the time, so there are several writers.
_NUM_WRITERS = 4
# h5py has one lock for all threads. Threads that compete for it at each call take twice as long.
_hdf5_lock = threading.Lock()
# Maximum time to wait for another process that is writing the same map file.
LOCK_TIMEOUT_SECONDS = 60.0
# Other tools use a magnification instead of mpp: magnification = 10 / mpp.
_MAGNIFICATION_TIMES_MPP = 10.0
_WHITE = 255
_BLOCK_BYTES = 2**24  # bytes of CAMs that are copied at a time
_BLOCK_PX = 2**19  # px of the picture that are joined at a time
_CELLS_PER_CHUNK = 8  # a chunk of the picture has up to 8 cells of a grid row


@contextmanager
def atomic_hdf5(path: Path) -> Iterator[h5py.File]:
    """Context manager: write an HDF5 file in one atomic step; at the end, ``complete`` is 1."""
    with atomic_write(path) as partial, _hdf5_lock, create_hdf5(partial) as file:
        yield file
        file.attrs["complete"] = 1


def write_map(path: Path, patient_map: PatientMap) -> None:
    """Write a map file in one atomic step; the CAMs and the picture are copied in small parts."""
    with atomic_hdf5(path) as file:
        _write_root(file, patient_map)
        _write_columns(file, patient_map)
        _write_map_group(file, patient_map)
        if patient_map.cam is not None:
            _write_cam_group(file, patient_map)
        if patient_map.slide is not None:
            _write_slide(file, patient_map.slide)
        # Large data are last, because readers check the texts only near the start.
        if patient_map.cam is not None:
            _write_cams(file["cam"], patient_map)
        if patient_map.patches is not None:
            _write_image(file, patient_map)


def _write_root(file: h5py.File, patient_map: PatientMap) -> None:
    rows, cols = patient_map.shape
    attrs: dict[str, Any] = {
        "NX_class": "NXroot",
        "default": "map",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": 0,
        "patient": patient_map.patient,
        "source": patient_map.source,
        "class_names": list(patient_map.class_names),
        "patch_px": patient_map.patch_px,
        "stride_px": patient_map.cell_px,
        "mpp": patient_map.mpp,
        "mpp_source": patient_map.mpp_source,
        "rows": rows,
        "cols": cols,
        "threshold": patient_map.threshold,
        "temperature": patient_map.temperature,
        "model": json.dumps(patient_map.model),
        "provenance": json.dumps(patient_map.provenance),
    }
    if patient_map.slide_name:
        attrs["slide_name"] = patient_map.slide_name
    if patient_map.smoothing is not None:
        attrs["smoothing"] = json.dumps(dict(patient_map.smoothing))
    if patient_map.unsmoothed_threshold is not None:
        attrs["unsmoothed_threshold"] = patient_map.unsmoothed_threshold
    if patient_map.novelty_limit is not None:
        attrs["novelty_limit"] = patient_map.novelty_limit
    if patient_map.exclude_flagged:
        attrs["exclude_flagged"] = 1
    create_attributes(file, attrs)


def coords_attributes(patches: PatientPatches) -> dict[str, Any]:
    """Return the attributes of the dataset ``coords``, with the names that TRIDENT uses."""
    level_dim = np.array(patches.level0_size)  # width, height
    return {
        "name": patches.slide_name or patches.patient,
        "patch_size": patches.patch_px,
        "patch_level": 0,
        "patch_size_level0": round(patches.patch_size_level0),
        "patch_spacing_um_px": patches.mpp,
        "level0_magnification": _MAGNIFICATION_TIMES_MPP / patches.level0_mpp,
        "target_magnification": _MAGNIFICATION_TIMES_MPP / patches.mpp,
        "overlap": patches.patch_px - patches.cell_px,
        "downsample": np.array([1.0, 1.0]),
        "level_dim": level_dim,
        "downsampled_level_dim": level_dim,
    }


def _write_columns(file: h5py.File, patient_map: PatientMap) -> None:
    create_dataset(file, "coords", patient_map.coords, coords_attributes(patient_map))
    for name in ("row_col", "logit", "probability", "label"):
        create_dataset(file, name, getattr(patient_map, name))
    for name, values in _optional_columns(patient_map).items():
        create_dataset(file, name, values)
    if patient_map.flags is not None:
        create_dataset(file, "flags", patient_map.flags, _flag_attributes(patient_map))


def _flag_attributes(patient_map: PatientMap) -> dict[str, Any]:
    """Return the HDF5 attributes for the flags, as in the CF conventions for NetCDF."""
    masks = np.array(list(patient_map.flag_bits.values()), np.uint8)
    return {"flag_masks": masks, "flag_meanings": " ".join(patient_map.flag_bits)}


def _optional_columns(patient_map: PatientMap) -> dict[str, NDArray[np.float32]]:
    """Return the optional values that the map has, as a dict from dataset name to values."""
    columns = {
        "uncertainty": patient_map.uncertainty,
        "probability_unsmoothed": patient_map.unsmoothed,
        "novelty": patient_map.novelty,
    }
    return {name: values for name, values in columns.items() if values is not None}


def _write_map_group(file: h5py.File, patient_map: PatientMap) -> None:
    group, optional = file.create_group("map"), _optional_columns(patient_map)
    title = f"Probability of IDC, patient {patient_map.map_name}"
    attrs: dict[str, Any] = {"NX_class": "NXdata", "signal": "probability", "axes": ["y", "x"]}
    flags = [] if patient_map.flags is None else ["flags"]
    attrs |= {"auxiliary_signals": ["label", "index", *optional, *flags], "title": title}
    create_attributes(group, attrs)
    shape, row_col = patient_map.shape, patient_map.row_col
    create_dataset(group, "probability", patient_map.probability_grid())
    create_dataset(group, "label", patient_map.label_grid())
    for name, values in optional.items():
        create_dataset(group, name, patient_map.grid(values))
    if patient_map.flags is not None:
        flags_grid = scatter_to_grid(patient_map.flags, row_col, shape=shape, fill=0)
        create_dataset(group, "flags", flags_grid, _flag_attributes(patient_map))
    index = scatter_to_grid(np.arange(len(row_col), dtype=np.int32), row_col, shape=shape, fill=-1)
    create_dataset(group, "index", index)
    _write_axes(group, patient_map, points=(1, 1))


def _write_cam_group(file: h5py.File, patient_map: PatientMap) -> None:
    assert patient_map.cam is not None
    group, method = file.create_group("cam"), patient_map.cam_method
    title = f"{method} of {patient_map.cam_class}, raw, {patient_map.map_name}"
    attrs: dict[str, Any] = {
        "NX_class": "NXdata",
        "signal": "mosaic",
        "axes": ["y", "x"],
        "title": title,
    }
    attrs |= {"method": method, "target_layer": patient_map.cam_layer}
    create_attributes(group, attrs | {"class": patient_map.cam_class, "normalized": 0})
    group.create_dataset("raw", patient_map.cam.shape, np.float32)
    rows, cols = patient_map.shape
    height, width = patient_map.cell_cams(slice(1)).shape[1:]
    shape = (rows * height, cols * width)
    group.create_dataset("mosaic", shape, np.float32, compression="gzip", compression_opts=1)
    _write_axes(group, patient_map, points=(height, width))


def _write_cams(group: h5py.Group, patient_map: PatientMap) -> None:
    cam: Any = patient_map.cam
    raw, mosaic_of_cams, top = group["raw"], group["mosaic"], 0
    if raw.nbytes + mosaic_of_cams.nbytes <= _BLOCK_BYTES:
        cams = cam[:]
        raw[...] = cams
        mosaic_of_cams[...] = replace(patient_map, cam=cams).cam_mosaic()
        return
    step = max(1, _BLOCK_BYTES * len(raw) // raw.nbytes)
    for first in range(0, len(raw), step):
        raw[first : first + step] = cam[first : first + step]
    # HDF5 compresses a chunk again at each write to it, so each block has only full chunks.
    for block in rebatch(patient_map.cam_strips(), batch_size=mosaic_of_cams.chunks[0]):
        mosaic_of_cams[top : top + len(block)] = block
        top += len(block)


def _write_slide(file: h5py.File, slide: SlideView) -> None:
    group = file.create_group("slide")
    for name in ("name", "mpp", "mpp_source", "width", "height"):
        group.attrs[name] = getattr(slide, name)
    if slide.bounds is not None:
        group.attrs["bounds"] = astuple(slide.bounds)
    options = {"compression": "gzip", "compression_opts": 1}
    group.create_dataset("thumbnail", data=slide.thumbnail, **options)
    group.create_dataset("tissue", data=slide.tissue.astype(np.uint8), **options)


def _write_axes(group: h5py.Group, patient_map: PatientMap, *, points: tuple[int, ...]) -> None:
    """Write the axes x and y in um; ``points`` is the number of points per cell along y and x."""
    cell_um = patient_map.cell_px * patient_map.mpp
    origin_um = patient_map.origin_px * patient_map.mpp
    for name, count, parts in zip("yx", patient_map.shape, points, strict=True):
        centers = cell_centers_um(count * parts, step_um=cell_um / parts, origin_um=origin_um)
        create_dataset(group, name, centers, {"units": "um"})


def _write_image(file: h5py.File, patient_map: PatientMap) -> None:
    """Write the picture of the tissue in small parts; omit chunks without a patch."""
    assert patient_map.patches is not None
    rows, cols = patient_map.shape
    side, margin = patient_map.cell_px, (patient_map.patch_px - patient_map.cell_px) // 2
    center = slice(margin, margin + side)
    wide = min(cols, _CELLS_PER_CHUNK)
    image = file.create_group("image").create_dataset(
        "rgb",
        (rows * side, cols * side, 3),
        np.uint8,
        chunks=(side, side * wide, 3),
        fillvalue=_WHITE,
    )
    image.attrs.update(
        {"CLASS": np.bytes_("IMAGE"), "IMAGE_SUBCLASS": np.bytes_("IMAGE_TRUECOLOR")}
    )
    row, col = patient_map.row_col.T
    order = np.lexsort((col, row))  # a stable order: the last patch of a cell is the visible one
    chunk_of = np.stack([row, col // wide], axis=1)[order]
    used, start = np.unique(chunk_of, axis=0, return_index=True)
    parts = np.split(order, start[1:])
    step = max(1, _BLOCK_PX // (side * side * wide))
    for first in range(0, len(used), step):
        block = slice(first, first + step)
        members = np.concatenate(parts[block])
        strip = np.repeat(np.arange(len(used[block])), [len(part) for part in parts[block]])
        patches = patient_map.patches[members][:, center, center]
        strips = mosaic(
            patches,
            np.stack([strip, col[members] % wide], axis=1),
            shape=(len(used[block]), wide),
            fill=_WHITE,
        )
        # Writing complete chunks takes 40 % less time than image[...] = strip.
        chunks = strips.reshape(len(used[block]), -1)
        for (top, left), chunk in zip(used[block].tolist(), chunks, strict=True):
            image.id.write_direct_chunk((top * side, left * wide * side, 0), chunk)


def image_bytes(patches: PatientPatches) -> int:
    """Return the size of the picture in a map file. Chunks without a patch are not stored."""
    wide = min(patches.shape[1], _CELLS_PER_CHUNK)
    num_chunks = len(np.unique(patches.row_col // (1, wide), axis=0))
    return 3 * patches.cell_px**2 * wide * num_chunks


@dataclass
class MapReport:
    """Result of ``MapBuilder.build``. The keys of each dict are map names.

    Attributes:
        made: Files of new maps.
        kept: Files of existing maps that are up to date.
        failed: Reasons why maps were not built.
        patches: Number of patches of each new map.
        idc_fraction: Fraction of the patches of each new map that are called IDC.
        unsmoothed_idc_fraction: ``idc_fraction`` before smoothing, of the maps with smoothing.
        caution: For each new map, the reasons not to trust the map; may be empty.
        flagged: Number of patches with each quality flag in each new map.
        without_flags: Names of the kept maps that an older version made without quality flags.
        summaries: Summary of each new map, for the table of all maps.
    """

    made: dict[str, Path] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    idc_fraction: dict[str, float] = field(default_factory=dict)
    unsmoothed_idc_fraction: dict[str, float] = field(default_factory=dict)
    caution: dict[str, str] = field(default_factory=dict)
    flagged: dict[str, dict[str, int]] = field(default_factory=dict)
    without_flags: list[str] = field(default_factory=list)
    summaries: dict[FileVersion, MapSummary] = field(default_factory=dict)

    def record_failure(self, name: str, error: Exception) -> None:
        """Record the reason why a map was not built; raise ``error`` again if the disk is full.

        The reason is written to the report only, not to the log.
        """
        if isinstance(error, DiskFullError):
            raise error
        self.failed[name] = str(error)
        logger.info("no map of %s; the reason is in the report at the end", name)


@contextmanager
def map_writers(folder: Path, report: MapReport) -> Iterator[SubmitMap]:
    """Context manager: write maps in threads while the network computes the next maps.

    Args:
        folder: Folder of the maps.
        report: Report that receives the result for each map.

    Yields:
        Function ``submit(name, make)``, where ``make`` is a function that builds the map.
        ``submit`` waits while too many maps are pending.
    """
    pending: deque[tuple[str, Future[tuple[PatientMap, FileVersion, MapSummary]]]] = deque()

    def collect() -> None:
        name, future = pending.popleft()
        try:
            patient_map, version, summary = future.result()
        except (WsiIdcError, OSError) as error:
            report.record_failure(name, error)
            return
        report.made[name], report.summaries[version] = version[0], summary
        report.patches[name] = len(patient_map.probability)
        report.idc_fraction[name] = patient_map.idc_fraction()
        if (second := patient_map.second_probability) is not None:
            report.unsmoothed_idc_fraction[name] = second.idc_fraction()
        report.caution[name] = patient_map.caution
        report.flagged[name] = patient_map.flag_counts()

    with ThreadPoolExecutor(_NUM_WRITERS) as pool:

        def submit(name: str, make: Callable[[], PatientMap]) -> None:
            pending.append((name, pool.submit(_write, folder, make)))
            # If the disk is slow, wait until the oldest map is written. This limits the memory.
            if len(pending) > _NUM_WRITERS:
                collect()

        try:
            yield submit
        finally:
            while pending:
                collect()


def _write(
    folder: Path, make: Callable[[], PatientMap]
) -> tuple[PatientMap, FileVersion, MapSummary]:
    """Build and write one map; wait while another process writes the same file."""
    patient_map = make()
    path = map_path(folder, patient_map.map_name)
    retry_while_busy(lambda: write_map(path, patient_map), timeout=LOCK_TIMEOUT_SECONDS)
    return patient_map, file_version(path), summarize(patient_map)
