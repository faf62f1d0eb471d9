"""Read a patient's map from an open HDF5 file, whose every claim is checked."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.constants import NUM_CLASSES, POSSIBLE_MPP, POSSIBLE_TEMPERATURE
from wsi_idc.core.errors import MapError, first_line
from wsi_idc.core.files import parse_json, safe_filename
from wsi_idc.core.hdf5 import UNREADABLE, has_format, open_hdf5, read_attributes
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE, shape_of
from wsi_idc.maps.map_writer import (
    FORMAT,
    FORMAT_VERSION,
    MAX_CAM_BYTES,
    MAX_CAM_SIDE,
    OPTIONAL_COLUMNS,
)
from wsi_idc.maps.patient_map import PatientMap, SlideView

_MAX_THUMBNAIL_SIDE = 8192
_MAX_PATCH_PX = 4096
_MAX_RATIO, _SMALL_BYTES = 1100, 2**24  # deflate packs 1032 to 1


def read_content(file: h5py.File) -> PatientMap:
    """Return all that a map holds but its image.

    Raises:
        ValueError, or another of ``UNREADABLE``: The file is damaged, or something else.
    """
    content = read_all_but_cams(file)
    return replace(content, cam=file["cam/raw"][:].astype(np.float32)) if "cam" in file else content


def read_all_but_cams(file: h5py.File) -> PatientMap:
    """Return all that a map holds but its image and the values of its CAMs, its largest part.

    Raises:
        ValueError, or another of ``UNREADABLE``: The file is damaged, or something else.
    """
    attrs = read_attributes(file)
    _check_attributes(attrs)
    num = _check_columns(file)
    row_col = file["row_col"][:].astype(np.int32)
    if shape_of(row_col) != (int(attrs["rows"]), int(attrs["cols"])):
        raise ValueError("rows and cols do not fit /row_col")
    model, record = parse_json(attrs["model"]), parse_json(attrs["provenance"])
    if not isinstance(model, dict) or not isinstance(record, dict):
        raise ValueError("model or provenance is no JSON object")
    return PatientMap(
        patient=safe_filename(str(attrs["patient"])),
        source=str(attrs["source"]),
        class_names=tuple(str(name) for name in attrs["class_names"]),
        patch_px=int(attrs["patch_px"]),
        stride_px=_read_stride(attrs),
        mpp=float(attrs["mpp"]),
        mpp_source=str(attrs["mpp_source"]),
        threshold=float(attrs["threshold"]),
        temperature=float(attrs["temperature"]),
        model=model,
        provenance=record,
        coords=file["coords"][:].astype(np.int32),
        row_col=row_col,
        logit=file["logit"][:].astype(np.float32),
        probability=file["probability"][:].astype(np.float32),
        label=file["label"][:].astype(np.int8),
        **_read_cam(file, num),
        uncertainty=_read_column(file, "uncertainty"),
        smoothed=_read_column(file, "probability_smoothed"),
        smoothing=_read_smoothing(attrs),
        slide=_read_slide(file),
    )


def _check_attributes(attrs: Any) -> None:
    """Raise ValueError where the file is not a whole map, or a number in it cannot be."""
    if str(attrs.get("format")) != FORMAT:
        raise ValueError("it is HDF5, but not a map")
    if int(attrs["format_version"]) != FORMAT_VERSION:
        raise ValueError(f"format version {attrs['format_version']}, not {FORMAT_VERSION}")
    if int(attrs["complete"]) != 1:
        raise ValueError("it is not complete")
    if not (_is_mpp(attrs["mpp"]) and 0 < attrs["patch_px"] <= _MAX_PATCH_PX):
        raise ValueError("mpp or patch_px is out of range")
    coldest, warmest = POSSIBLE_TEMPERATURE
    if not (0 <= attrs["threshold"] <= 1 and coldest <= attrs["temperature"] <= warmest):
        raise ValueError("threshold or temperature is out of range")
    if len(attrs["class_names"]) != NUM_CLASSES:
        raise ValueError("not two classes")


def _check_columns(file: h5py.File) -> int:
    """Return the number of patches, once every data set with a row for each has been checked."""
    num = int(file["coords"].shape[0])
    if num > MAX_CELLS_PER_SIDE**2:
        raise ValueError(f"{num} patches are more than any slide has")
    widths = {"coords": (2,), "row_col": (2,), "logit": (2,), "probability": (), "label": ()}
    widths |= {name: () for name in OPTIONAL_COLUMNS if name in file}
    for name, width in widths.items():
        if file[name].shape != (num, *width):
            raise ValueError(f"/{name} has shape {file[name].shape}, not {(num, *width)}")
        _check_plain(file[name])
    if not np.isin(file["label"][:], (-1, 0, 1)).all():
        raise ValueError("not two classes")
    return num


def _is_mpp(value: Any) -> bool:
    finest, coarsest = POSSIBLE_MPP
    return bool(finest <= value <= coarsest)


def _check_plain(dataset: h5py.Dataset) -> None:
    """Raise ValueError where a data set is not of plain numbers, or claims more than it holds."""
    if dataset.dtype.kind not in "iufb" or dataset.dtype.itemsize > np.dtype("f8").itemsize:
        raise ValueError(f"{dataset.name} is of type {dataset.dtype}")
    if dataset.nbytes > max(_SMALL_BYTES, _MAX_RATIO * dataset.id.get_storage_size()):
        raise ValueError(f"{dataset.name} claims {dataset.nbytes} bytes that are not there")


def _read_stride(attrs: Any) -> int | None:
    stride, patch = int(attrs.get("stride_px", attrs["patch_px"])), int(attrs["patch_px"])
    if not 0 < stride <= patch:
        raise ValueError(f"a stride of {stride} px for patches of {patch}")
    return None if stride == patch else stride


def image_of(file: h5py.File, content: PatientMap) -> h5py.Dataset | None:
    """Return the stitched tissue, unread, None if it was left out."""
    if "image/rgb" not in file:
        return None
    rows, cols = content.shape
    image, shape = file["image/rgb"], (rows * content.cell_px, cols * content.cell_px, 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(f"/image/rgb is not uint8 {shape}")
    return image


def _read_cam(file: h5py.File, num: int) -> dict[str, Any]:
    """Return what a PatientMap says of its CAMs but their values, nothing where there are none."""
    if "cam" not in file:
        return {}
    raw = file["cam/raw"]
    if raw.ndim != 3 or raw.shape[0] != num or not 0 < max(raw.shape[1:]) <= MAX_CAM_SIDE:
        raise ValueError(f"/cam/raw has shape {raw.shape}")
    _check_plain(raw)
    if raw.nbytes > MAX_CAM_BYTES:
        raise ValueError(f"CAMs of {raw.nbytes / 1e9:.0f} GB are more than any slide has")
    attrs = read_attributes(file["cam"])
    return {
        "cam_layer": str(attrs["target_layer"]),
        "cam_method": str(attrs["method"]),
        "cam_class": str(attrs["class"]),
    }


def _read_column(file: h5py.File, name: str) -> NDArray[np.float32] | None:
    return file[name][:].astype(np.float32) if name in file else None


def _read_smoothing(attrs: Any) -> dict[str, float] | None:
    if "smoothing" not in attrs:
        return None
    found = parse_json(attrs["smoothing"])
    smoothing = {name: float(found[name]) for name in ("sigma_um", "temperature", "threshold")}
    if not 0 <= smoothing["threshold"] <= 1:
        raise ValueError("the threshold of the smoothing is out of range")
    return smoothing


def _read_slide(file: h5py.File) -> SlideView | None:
    if "slide" not in file:
        return None
    group = file["slide"]
    attrs, thumbnail, tissue = read_attributes(group), group["thumbnail"], group["tissue"]
    sides = tissue.shape
    if thumbnail.shape != (*sides, 3) or not 0 < min(sides) <= max(sides) <= _MAX_THUMBNAIL_SIDE:
        raise ValueError(f"/slide/thumbnail has shape {thumbnail.shape}, tissue {sides}")
    _check_plain(thumbnail)
    _check_plain(tissue)
    if not (_is_mpp(attrs["mpp"]) and min(attrs["width"], attrs["height"]) > 0):
        raise ValueError("the slide's mpp, width or height is out of range")
    return SlideView(
        name=str(attrs["name"]),
        mpp=float(attrs["mpp"]),
        width=int(attrs["width"]),
        height=int(attrs["height"]),
        thumbnail=thumbnail[:].astype(np.uint8),
        tissue=tissue[:].astype(bool),
    )


# Lies among the maps and is none: the table of a cohort (maps/cohort_store.py).
COHORT_H5 = "cohort.h5"
_MAX_IMAGE_BYTES = 2**32  # that is read at one go
ReadRows = Callable[[int, int | None], NDArray[np.uint8]]


def map_path(folder: Path, patient: str) -> Path:
    """Return the map file of a patient in ``folder``.

    Raises:
        DataError: The id could lead out of the folder.
    """
    return folder / f"{safe_filename(patient)}.h5"


def map_paths(folder: Path) -> list[Path]:
    """Return the files of a folder that should be maps, usable or not, by name."""
    found = sorted(folder.glob("*.h5"))
    return [path for path in found if path.name != COHORT_H5 or is_map(path)]


def read_map(path: Path) -> PatientMap:
    """Read a map file, all but its image.

    Raises:
        MapError: It is missing, damaged, or something else.
    """
    with _opened(path) as file:
        return read_content(file)


def read_image(path: Path) -> NDArray[np.uint8] | None:
    """Read the stitched tissue, shape (rows * cell_px, cols * cell_px, 3), None if left out.

    Raises:
        MapError: The map is missing, damaged, or something else.
    """
    with open_image(path) as read_rows:
        return read_rows(0, None) if read_rows else None


@contextmanager
def open_image(path: Path) -> Iterator[ReadRows | None]:
    """Yield what reads rows of px of the stitched tissue, None if it was left out.

    A whole slide's may be gigabytes. ``read_rows(first, last)`` returns shape (last - first,
    cols * cell_px, 3), uint8; a ``last`` of None means to the end.

    Raises:
        MapError: The map is missing, damaged, or something else.
    """
    # What goes wrong in the caller's block is no fault of the map.
    with ExitStack() as stack:
        with _in_one_line(path):
            file = stack.enter_context(open_hdf5(path))
            image = image_of(file, read_all_but_cams(file))
        yield None if image is None else partial(_read_rows, path, image)


def _read_rows(path: Path, image: h5py.Dataset, first: int, last: int | None) -> NDArray[np.uint8]:
    with _in_one_line(path):
        if last is None and image.nbytes > _MAX_IMAGE_BYTES:
            raise ValueError(f"an image of {image.nbytes / 1e9:.0f} GB is too large to show")
        return image[first:last]


def read_image_rows(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the stitched tissue a row of cells at a time; nothing if it was left out.

    Each is of shape (cell_px, cols * cell_px, 3).

    Raises:
        MapError: The map is missing, damaged, or something else.
    """
    content = read_map(path)
    side = content.cell_px
    with open_image(path) as read_rows:
        for row in range(content.shape[0] if read_rows else 0):
            assert read_rows is not None
            yield read_rows(row * side, (row + 1) * side)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what made a map; None where there is no file. All but the CAMs is read and checked.

    Raises:
        MapError: The file is no complete map, so it is not ours to replace.
    """
    if not path.exists():
        return None
    with _opened(path) as file:
        return dict(read_all_but_cams(file).provenance)


def is_map(path: Path) -> bool:
    """Return whether a file is a map by its attribute ``format``."""
    return has_format(path, FORMAT)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a map for reading; whatever is wrong with it becomes a MapError."""
    with _in_one_line(path), open_hdf5(path) as file:
        yield file


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with the map at ``path`` into a MapError."""
    try:
        yield
    except FileNotFoundError:
        raise MapError(f"{path}: no such file; make it with wsi-idc map") from None
    except IsADirectoryError:
        raise MapError(f"{path} is a folder; give a map file in it") from None
    except UNREADABLE as error:
        reason = first_line(error)
        raise MapError(f"{path}: not a usable map ({reason}); make it anew") from None
