"""Read map files; every value is checked, because a file may be damaged or manipulated."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core import hdf5
from wsi_idc.core.constants import NUM_CLASSES, POSSIBLE_MPP, POSSIBLE_TEMPERATURE
from wsi_idc.core.errors import MapError, first_line
from wsi_idc.core.files import parse_json, safe_filename
from wsi_idc.core.hdf5 import DatasetSpec, open_hdf5, read_attributes
from wsi_idc.geometry.bounds import Bounds
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE, shape_of
from wsi_idc.maps.patient_map import PatientMap, SlideView

FORMAT = "wsi-idc-map"
FORMAT_VERSION = 1
# Format of the file that links the maps of a patient with several slides.
PATIENT_FORMAT = "wsi-idc-patient"
# Limits for the size of CAMs: the CAM of an early layer has as many cells as the patch has px.
MAX_CAM_SIDE = 256  # cells per side of a CAM
MAX_CAM_BYTES = 2**32  # bytes of all CAMs of a map
# Name of the cohort file, which is in the same folder as the maps.
COHORT_H5 = "cohort.h5"
_MAX_PATCH_PX = 4096
_THUMBNAIL_SIDE = (1, 8192)
MAX_IMAGE_BYTES = 2**32  # largest image of a map
ReadRows = Callable[[int, int | None], NDArray[np.uint8]]


def map_path(folder: Path, name: str) -> Path:
    """Return the path of a map file; raise DataError if the name cannot be a file name.

    Args:
        folder: Folder of the maps.
        name: Name of the map: PATIENT, or PATIENT/SLIDE if the patient has several slides.
    """
    patient, slash, slide = name.partition("/")
    if slash:
        return folder / safe_filename(patient) / f"{safe_filename(slide, kind='slide name')}.h5"
    return folder / f"{safe_filename(patient)}.h5"


def map_paths(folder: Path) -> list[Path]:
    """Return the map files of a folder, sorted by name; damaged files are included.

    Instead of a patient file, the list has the maps that the patient file links.
    """
    paths = [path for file in sorted(folder.glob("*.h5")) for path in maps_of(file)]
    return [path for path in paths if path.name != COHORT_H5 or is_map(path)]


def maps_of(path: Path) -> list[Path]:
    """Return the map files that a patient file links. For other files, return the file itself."""
    return slide_paths(path) if is_patient_file(path) else [path]


def slide_paths(path: Path) -> list[Path]:
    """Return the map files of a patient's slides, sorted; ``path`` is the patient file."""
    return sorted(path.with_suffix("").glob("*.h5"))


def folder_of_slide(path: Path) -> str:
    """Return the name of the folder PATIENT for a map file PATIENT/SLIDE.h5.

    If there is no patient file PATIENT.h5 beside the folder, return "".
    """
    folder = path.absolute().parent
    return folder.name if is_patient_file(folder.with_name(f"{folder.name}.h5")) else ""


def is_patient_file(path: Path) -> bool:
    """Return whether a file PATIENT.h5 is a patient file and has a folder PATIENT beside it."""
    # The test for a folder is first, because it is fast and most patients have no folder.
    return path.with_suffix("").is_dir() and has_patient_format(path)


def has_patient_format(path: Path) -> bool:
    """Return whether a file links the maps of a patient, according to its attribute ``format``."""
    return hdf5.has_format(path, PATIENT_FORMAT)


def is_map(path: Path) -> bool:
    """Return whether a file is a map, according to its attribute ``format``."""
    return hdf5.has_format(path, FORMAT)


def read_map(path: Path) -> PatientMap:
    """Read a map file without the picture of the tissue.

    Raises:
        MapError: The file is missing, damaged, or not a map.
    """
    with _errors_as_map_error(path), open_hdf5(path) as file:
        patient_map = _read_without_cams(file)
        if not hdf5.has_link(file, "cam"):
            return patient_map
        return replace(patient_map, cam=file["cam/raw"][:].astype(np.float32))


def read_map_without_cams(path: Path) -> PatientMap:
    """Read a map file without CAMs and picture; the errors are those of ``read_map``."""
    with _errors_as_map_error(path), open_hdf5(path) as file:
        return _read_without_cams(file)


def has_flags(path: Path) -> bool:
    """Return whether a map file has quality flags; maps of older versions have no flags."""
    with _errors_as_map_error(path), open_hdf5(path) as file:
        return hdf5.has_link(file, "flags")


def exclude_flagged(path: Path, patient_map: PatientMap) -> PatientMap:
    """Return a copy of a map whose areas and regions leave out flagged patches.

    Args:
        path: Map file, for the error message.
        patient_map: The map.

    Raises:
        MapError: The map has no flags.
    """
    if patient_map.flags is None:
        raise MapError(
            f"{path}: has no quality flags; make it again with wsi-idc map --overwrite, or leave "
            "out --exclude-flagged"
        )
    return replace(patient_map, exclude_flagged=True)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Check a map file and return its provenance. The values of CAMs are not checked.

    Return None if the file is missing. Raise MapError if the file is not a usable map. An unusable
    file may be of another program, so only ``--overwrite`` replaces the file.
    """
    if not path.exists():
        return None
    return dict(read_map_without_cams(path).provenance)


def read_image(path: Path) -> NDArray[np.uint8] | None:
    """Read the picture of the tissue; return None if the map has no picture.

    The shape is (rows * cell_px, cols * cell_px, 3).
    """
    with open_image(path) as read_rows:
        return read_rows(0, None) if read_rows else None


@contextmanager
def open_image(path: Path) -> Iterator[ReadRows | None]:
    """Open the picture of the tissue, so that a large picture can be read a few rows at a time.

    Yields:
        Function ``read_rows(first, last)``, or None if the map has no picture. The function returns
        the px rows ``first`` to ``last - 1``, shape (last - first, cols * cell_px, 3), uint8. With
        ``last=None``, the function returns all rows from ``first`` on.
    """
    # Errors in the ``with`` block of the caller must not become a MapError.
    with ExitStack() as stack:
        with _errors_as_map_error(path):
            file = stack.enter_context(open_hdf5(path))
            image = _check_image(file, _read_without_cams(file))
        yield None if image is None else partial(_read_rows, path, image)


def _read_rows(path: Path, image: h5py.Dataset, first: int, last: int | None) -> NDArray[np.uint8]:
    with _errors_as_map_error(path):
        if last is None and image.nbytes > MAX_IMAGE_BYTES:
            raise ValueError(f"an image of {image.nbytes / 1e9:.0f} GB is too large to show")
        return image[first:last]


def read_image_rows(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Read the picture of the tissue one grid row at a time.

    Yields:
        Pixels of a grid row, shape (cell_px, cols * cell_px, 3), uint8. Nothing is yielded if the
        map has no picture.
    """
    with ExitStack() as stack:
        with _errors_as_map_error(path):
            file = stack.enter_context(open_hdf5(path))
            patient_map = _read_without_cams(file)
            image = _check_image(file, patient_map)
        if image is not None:
            cell_px = patient_map.cell_px
            for row in range(patient_map.shape[0]):
                yield _read_rows(path, image, row * cell_px, (row + 1) * cell_px)


@contextmanager
def _errors_as_map_error(path: Path) -> Iterator[None]:
    """Context manager: errors of h5py or NumPy in the ``with`` block become a MapError."""
    try:
        yield
    except FileNotFoundError:
        raise MapError(f"{path}: no such file; make it with wsi-idc map") from None
    except IsADirectoryError:
        raise MapError(f"{path} is a folder; give a map file in it") from None
    except hdf5.UNREADABLE as error:
        reason = first_line(error)
        raise MapError(f"{path}: not a usable map ({reason}); make it again") from None


def _read_without_cams(file: h5py.File) -> PatientMap:
    """Read and check a map file without the picture of the tissue and the values of CAMs."""
    attrs = read_attributes(file)
    _check_attributes(attrs)
    columns = _read_columns(file)
    if shape_of(columns["row_col"]) != (int(attrs["rows"]), int(attrs["cols"])):
        raise ValueError("the attributes rows and cols do not fit /row_col")
    patch_px = int(attrs["patch_px"])
    stride_px = int(attrs.get("stride_px", patch_px))
    if not 0 < stride_px <= patch_px:
        raise ValueError(f"a stride of {stride_px} px is impossible for patches of {patch_px} px")
    model, record = parse_json(attrs["model"]), parse_json(attrs["provenance"])
    if not isinstance(model, dict) or not isinstance(record, dict):
        raise ValueError("model or provenance is not a JSON object")
    return PatientMap(
        patient=safe_filename(str(attrs["patient"])),
        slide_name=_read_slide_name(attrs),
        source=str(attrs["source"]),
        class_names=tuple(str(name) for name in attrs["class_names"]),
        patch_px=patch_px,
        stride_px=None if stride_px == patch_px else stride_px,
        mpp=float(attrs["mpp"]),
        mpp_source=str(attrs["mpp_source"]),
        temperature=float(attrs["temperature"]),
        model=model,
        provenance=record,
        threshold=float(attrs["threshold"]),
        **_read_second_probability(columns, attrs),
        **columns,
        novelty_limit=_read_novelty_limit(attrs),
        flag_bits=_read_flag_bits(file, columns.get("flags")),
        exclude_flagged=bool(attrs.get("exclude_flagged", 0)),
        slide=_read_slide(file, attrs) if hdf5.has_link(file, "slide") else None,
        **_read_cam_attributes(file, len(columns["coords"])),
    )


def _read_slide_name(attrs: dict[str, Any]) -> str:
    name = attrs.get("slide_name")
    return "" if name is None else safe_filename(str(name), kind="slide name")


def _check_attributes(attrs: dict[str, Any]) -> None:
    if str(attrs.get("format")) == PATIENT_FORMAT:
        raise ValueError("it links the maps of several slides; give one of these maps")
    if str(attrs.get("format")) != FORMAT:
        raise ValueError("it is an HDF5 file, but not a map")
    if int(attrs["format_version"]) != FORMAT_VERSION:
        raise ValueError(f"format version {attrs['format_version']} instead of {FORMAT_VERSION}")
    if int(attrs["complete"]) != 1:
        raise ValueError("it is not complete")
    low, high = POSSIBLE_MPP
    if not (low <= attrs["mpp"] <= high and 0 < attrs["patch_px"] <= _MAX_PATCH_PX):
        raise ValueError("mpp or patch_px is out of range")
    low, high = POSSIBLE_TEMPERATURE
    if not (0 <= attrs["threshold"] <= 1 and low <= attrs["temperature"] <= high):
        raise ValueError("threshold or temperature is out of range")
    if len(attrs["class_names"]) != NUM_CLASSES:
        raise ValueError(f"{len(attrs['class_names'])} class names instead of {NUM_CLASSES}")


def _read_columns(file: h5py.File) -> dict[str, Any]:
    any_num = DatasetSpec("integer", ((1, MAX_CELLS_PER_SIDE**2), 2))
    num = len(hdf5.check_dataset(file, "coords", any_num))
    pairs, optional = DatasetSpec("integer", (num, 2)), DatasetSpec("number", (num,), None, True)
    specs = {
        "coords": pairs,
        "row_col": pairs,
        "logit": DatasetSpec("number", (num, 2)),
        "probability": DatasetSpec("number", (num,)),
        "label": DatasetSpec("integer", (num,), (-1, 1)),
        "uncertainty": optional,
        "probability_unsmoothed": optional,
        "probability_smoothed": optional,
        "novelty": optional,
        "flags": DatasetSpec("integer", (num,), (0, 255), True),
    }
    types = {"coords": np.int32, "row_col": np.int32, "label": np.int8, "flags": np.uint8}
    columns = hdf5.read_datasets(file, specs)
    return {name: column.astype(types.get(name, np.float32)) for name, column in columns.items()}


def _read_second_probability(columns: dict[str, Any], attrs: dict[str, Any]) -> dict[str, Any]:
    """Move the second probability from ``columns`` to a dict of fields of ``PatientMap``."""
    smoothing = _read_smoothing(attrs)
    fields = {"smoothed": columns.pop("probability_smoothed", None), "smoothing": smoothing}
    unsmoothed = columns.pop("probability_unsmoothed", None)
    if unsmoothed is not None:
        threshold = float(attrs.get("unsmoothed_threshold", np.nan))
        if not 0 <= threshold <= 1:
            raise ValueError("the threshold of the unsmoothed probabilities is out of range")
        fields |= {"unsmoothed": unsmoothed, "unsmoothed_threshold": threshold}
    return fields


def _read_smoothing(attrs: dict[str, Any]) -> dict[str, float] | None:
    if "smoothing" not in attrs:
        return None
    record = parse_json(attrs["smoothing"])
    smoothing = {str(name): float(value) for name, value in record.items()}
    if not all(map(math.isfinite, smoothing.values())):
        raise ValueError("a value of the smoothing is not a finite number")
    if not 0 <= smoothing["threshold"] <= 1:
        raise ValueError("the threshold of the smoothed probabilities is out of range")
    return smoothing


def _read_novelty_limit(attrs: dict[str, Any]) -> float | None:
    if "novelty_limit" not in attrs:
        return None
    limit = float(attrs["novelty_limit"])
    if not 0 <= limit <= 1:
        raise ValueError("the limit of the mean novelty is out of range")
    return limit


def _read_flag_bits(file: h5py.File, flags: NDArray[np.uint8] | None) -> dict[str, int]:
    """Read the name and bit of each flag; check that each bit in ``flags`` has one name."""
    if flags is None:
        return {}
    attrs = read_attributes(file["flags"])
    names, bits = str(attrs["flag_meanings"]).split(), [int(bit) for bit in attrs["flag_masks"]]
    is_named = all(re.fullmatch("[a-z_]{1,20}", name) for name in names)
    is_distinct = len(names) == len(set(names)) == len(bits) == len(set(bits)) > 0
    if not (is_named and is_distinct) or set(bits) - {1 << n for n in range(8)}:
        raise ValueError("the names or bits of the flags are damaged")
    if (flags & ~np.uint8(sum(bits))).any():
        raise ValueError("a flag has no name")
    return dict(zip(names, bits, strict=True))


def _read_slide(file: h5py.File, root: dict[str, Any]) -> SlideView:
    side = _THUMBNAIL_SIDE
    tissue = hdf5.read_dataset(file, "slide/tissue", DatasetSpec("number", (side, side)))
    thumbnail = hdf5.read_dataset(file, "slide/thumbnail", DatasetSpec("u1", (*tissue.shape, 3)))
    attrs, (low, high) = read_attributes(file["slide"]), POSSIBLE_MPP
    if not (low <= attrs["mpp"] <= high and min(attrs["width"], attrs["height"]) > 0):
        raise ValueError("the slide's mpp, width or height is out of range")
    bounds = Bounds(*map(int, attrs["bounds"])) if "bounds" in attrs else None
    if bounds is not None and min(bounds.width, bounds.height) <= 0:
        raise ValueError("the bounds of the slide have no area")
    return SlideView(
        name=str(attrs["name"]),
        mpp=float(attrs["mpp"]),
        width=int(attrs["width"]),
        height=int(attrs["height"]),
        thumbnail=thumbnail,
        tissue=tissue.astype(bool),
        # Maps of version 0.1.0 have this attribute of the slide in the root.
        mpp_source=str(attrs.get("mpp_source", root["mpp_source"])),
        bounds=bounds,
    )


def _read_cam_attributes(file: h5py.File, num: int) -> dict[str, Any]:
    """Check the size of the CAMs without reading them; return the CAM fields of PatientMap."""
    if not hdf5.has_link(file, "cam"):
        return {}
    side = (1, MAX_CAM_SIDE)
    raw = hdf5.check_dataset(file, "cam/raw", DatasetSpec("number", (num, side, side)))
    if raw.nbytes > MAX_CAM_BYTES:
        raise ValueError(f"the CAMs are too large: {raw.nbytes / 1e9:.0f} GB")
    attrs = read_attributes(file["cam"])
    names = {"cam_layer": "target_layer", "cam_method": "method", "cam_class": "class"}
    return {field: str(attrs[name]) for field, name in names.items()}


def _check_image(file: h5py.File, patient_map: PatientMap) -> h5py.Dataset | None:
    """Return the dataset of the picture of the tissue; None if the map has no picture."""
    if not hdf5.has_link(file, "image"):
        return None
    height, width = (side * patient_map.cell_px for side in patient_map.shape)
    # The file does not store white parts of a picture.
    spec = DatasetSpec("u1", (height, width, 3), rows_at_once=patient_map.cell_px)
    return hdf5.check_dataset(file, "image/rgb", spec)
