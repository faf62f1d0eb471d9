"""The map file: one patient's probabilities and CAMs in HDF5, by one schema.

The groups ``/map`` and ``/cam`` are NeXus NXdata, so H5Web and silx open the file as a picture;
``/coords`` carries the attributes by which CLAM, TRIDENT and WSInfer read theirs.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.config import POSSIBLE_MPP, POSSIBLE_TEMPERATURE
from wsi_idc.errors import MapError
from wsi_idc.files import parse_json, plain_name, write_bytes
from wsi_idc.heap_check import check_heaps
from wsi_idc.maps.grid import MAX_CELLS_PER_SIDE, centres_um, lay, mosaic, shape_of
from wsi_idc.maps.patient_map import PatientMap, SlideView

FORMAT = "wsi-idc-map"
FORMAT_VERSION = 1
NUM_CLASSES = 2
# Lies among the maps and is none: the table of a cohort (maps/cohort_store.py).
COHORT_H5 = "cohort.h5"
_MAX_CAM_SIDE = 256
_MAX_THUMBNAIL_SIDE = 8192
_MAX_PATCH_PX = 4096
_MAX_CAM_BYTES = 2**32
# Magnification is a word of other tools: 10 um/px times mpp, as they reckon it.
_MAGNIFICATION_TIMES_MPP = 10.0
_WHITE = 255
_CELLS_PER_CHUNK = 8  # of the image, along a row
_OPTIONAL_COLUMNS = ("uncertainty", "probability_smoothed")

# What h5py and numpy raise at a file that is damaged, or made to deceive.
UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, AttributeError),
    *(RuntimeError, OverflowError, MemoryError),
)
_MAX_IMAGE_BYTES = 2**32  # that is read at one go
_MAX_RATIO, _SMALL_BYTES = 1100, 2**24  # deflate packs 1032 to 1

ReadRows = Callable[[int, int | None], NDArray[np.uint8]]


def map_path(folder: Path, patient: str) -> Path:
    """Return the map file of a patient in ``folder``.

    Raises:
        DataError: The id could lead out of the folder.
    """
    return folder / f"{plain_name(patient)}.h5"


def map_paths(folder: Path) -> list[Path]:
    """Return the files of a folder that should be maps, usable or not, by name."""
    found = sorted(folder.glob("*.h5"))
    return [path for path in found if path.name != COHORT_H5 or is_map(path)]


def write_map(path: Path, content: PatientMap) -> None:
    """Write a map file in one atomic step.

    Raises:
        BusyError: Another process is writing the same map.
    """
    # In memory first: HDF5 may crash the process when the disk fills up under it.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        _write_root(file, content)
        _write_columns(file, content)
        _write_map_group(file, content)
        if content.cam is not None:
            _write_cam_group(file, content)
        if content.slide is not None:
            _write_slide(file, content.slide)
        if content.patches is not None:
            _write_image(file, content)
        file.attrs["complete"] = 1
        file.flush()
        data = file.id.get_file_image()
    write_bytes(path, data)


def _write_root(file: h5py.File, content: PatientMap) -> None:
    rows, cols = content.shape
    file.attrs.update(
        {
            "NX_class": "NXroot",
            "default": "map",
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": 0,
            "patient": content.patient,
            "source": content.source,
            "class_names": list(content.class_names),
            "patch_px": content.patch_px,
            "stride_px": content.cell_px,
            "mpp": content.mpp,
            "mpp_source": content.mpp_source,
            "rows": rows,
            "cols": cols,
            "threshold": content.threshold,
            "temperature": content.temperature,
            "model": json.dumps(content.model),
            "provenance": json.dumps(content.provenance),
        }
    )
    if content.smoothing is not None:
        file.attrs["smoothing"] = json.dumps(dict(content.smoothing))


def _write_columns(file: h5py.File, content: PatientMap) -> None:
    side = content.patch_px
    level_dim = np.array(content.level0_size)  # width, height
    side_level0 = round(content.patch_size_level0)
    file["coords"] = content.coords
    file["coords"].attrs.update(
        {
            "name": content.patient,
            "patch_size": side,
            "patch_level": 0,
            "patch_size_level0": side_level0,
            "patch_spacing_um_px": content.mpp,
            "level0_magnification": _MAGNIFICATION_TIMES_MPP / content.level0_mpp,
            "target_magnification": _MAGNIFICATION_TIMES_MPP / content.mpp,
            "overlap": side - content.cell_px,
            "downsample": np.array([1.0, 1.0]),
            "level_dim": level_dim,
            "downsampled_level_dim": level_dim,
        }
    )
    file["row_col"] = content.row_col
    file["logit"] = content.logit
    file["probability"] = content.probability
    file["label"] = content.label
    for name, values in _optional_columns(content).items():
        file[name] = values


def _optional_columns(content: PatientMap) -> dict[str, NDArray[np.float32]]:
    """Return what a map has only where it was asked for, one value a patch."""
    columns = zip(_OPTIONAL_COLUMNS, (content.uncertainty, content.smoothed), strict=True)
    return {name: values for name, values in columns if values is not None}


def _write_map_group(file: h5py.File, content: PatientMap) -> None:
    group, optional = file.create_group("map"), _optional_columns(content)
    group.attrs.update(
        {
            "NX_class": "NXdata",
            "signal": "probability",
            "axes": ["y", "x"],
            "auxiliary_signals": ["label", "index", *optional],
            "title": f"Probability of IDC, patient {content.patient}",
        }
    )
    group["probability"] = content.probability_grid()
    group["label"] = content.label_grid()
    for name, values in optional.items():
        group[name] = content.grid(values)
    index = np.arange(len(content.row_col), dtype=np.int32)
    group["index"] = lay(index, content.row_col, shape=content.shape, fill=-1)
    _write_axes(group, content, cells=(1, 1))


def _write_cam_group(file: h5py.File, content: PatientMap) -> None:
    assert content.cam is not None
    group = file.create_group("cam")
    group.attrs.update(
        {
            "NX_class": "NXdata",
            "signal": "mosaic",
            "axes": ["y", "x"],
            "title": f"{content.cam_method} of {content.cam_class}, raw, {content.patient}",
            "method": content.cam_method,
            "target_layer": content.cam_layer,
            "class": content.cam_class,
            "normalized": 0,
        }
    )
    group["raw"] = content.cam
    values = content.cam_mosaic()
    group.create_dataset("mosaic", data=values, compression="gzip", compression_opts=1)
    rows, cols = content.shape
    _write_axes(group, content, cells=(values.shape[0] // rows, values.shape[1] // cols))


def _write_slide(file: h5py.File, slide: SlideView) -> None:
    group = file.create_group("slide")
    group.attrs.update(
        {"name": slide.name, "mpp": slide.mpp, "width": slide.width, "height": slide.height}
    )
    options = {"compression": "gzip", "compression_opts": 1}
    group.create_dataset("thumbnail", data=slide.thumbnail, **options)
    group.create_dataset("tissue", data=slide.tissue.astype(np.uint8), **options)


def _write_axes(group: h5py.Group, content: PatientMap, *, cells: tuple[int, ...]) -> None:
    """Write the centres of the grid's cells, each cut into ``cells`` (h, w), in um."""
    cell_um, origin_um = content.cell_px * content.mpp, content.origin_px * content.mpp
    for name, count, parts in zip("yx", content.shape, cells, strict=True):
        group[name] = centres_um(count * parts, step_um=cell_um / parts, origin_um=origin_um)
        group[name].attrs["units"] = "um"


def _write_image(file: h5py.File, content: PatientMap) -> None:
    """Write the stitched tissue, a row of patches at a time; white needs no room in the file."""
    assert content.patches is not None
    rows, cols = content.shape
    side, margin = content.cell_px, (content.patch_px - content.cell_px) // 2
    patches = content.patches[:, margin : margin + side, margin : margin + side]
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
    for row in np.unique(content.row_col[:, 0]):
        members = np.flatnonzero(content.row_col[:, 0] == row)
        chunk, place = np.divmod(content.row_col[members, 1], wide)
        used, number = np.unique(chunk, return_inverse=True)
        cells = np.stack([number, place], axis=1)
        strips = mosaic(patches[members], cells, shape=(len(used), wide), fill=_WHITE)
        # Whole chunks, as they lie in the file: HDF5 need not find out what goes where.
        for at, strip in zip(used, strips.reshape(len(used), -1), strict=True):
            image.id.write_direct_chunk((int(row) * side, int(at) * wide * side, 0), strip)


def read_map(path: Path) -> PatientMap:
    """Read a map file, all but its image.

    Raises:
        MapError: It is missing, damaged, or something else.
    """
    with _opened(path) as file:
        return _read(file)


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
            file = stack.enter_context(_file(path))
            image = _image_of(file, _read(file))
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


def read_identity(path: Path) -> dict[str, Any] | None:
    """Return what a map was made of (checkpoint, settings, data); None where there is no file.

    Raises:
        MapError: The file is no complete map, so it is not ours to replace.
    """
    if not path.exists():
        return None
    identity = read_map(path).provenance.get("identity")
    return dict(identity) if isinstance(identity, dict) else {}


def is_map(path: Path) -> bool:
    """Return whether a file says of itself that it is a map."""
    try:
        with _file(path) as file:
            return str(file.attrs.get("format")) == FORMAT
    except UNREADABLE:
        return False


def _file(path: Path) -> h5py.File:
    check_heaps(path)
    # A reader asks for no lock: many network disks have none.
    return h5py.File(path, "r", locking=False)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a map for reading; whatever is wrong with it becomes a MapError."""
    with _in_one_line(path), _file(path) as file:
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
        reason = (str(error).splitlines() or [type(error).__name__])[0].strip("'\"")
        raise MapError(f"{path}: not a usable map ({reason}); make it anew") from None


def _read(file: h5py.File) -> PatientMap:
    attrs: Any = file.attrs
    if str(attrs.get("format")) != FORMAT:
        raise ValueError("it is HDF5, but not a map")
    if int(attrs["format_version"]) != FORMAT_VERSION:
        raise ValueError(f"format version {attrs['format_version']}, not {FORMAT_VERSION}")
    if int(attrs["complete"]) != 1:
        raise ValueError("it is not complete")
    num = file["coords"].shape[0]
    if num > MAX_CELLS_PER_SIDE**2:
        raise ValueError(f"{num} patches are more than any slide has")
    shapes: dict[str, tuple[int, ...]] = {
        "coords": (num, 2),
        "row_col": (num, 2),
        "logit": (num, 2),
    }
    shapes |= {"probability": (num,), "label": (num,)}
    shapes |= {name: (num,) for name in _OPTIONAL_COLUMNS if name in file}
    for name, shape in shapes.items():
        if file[name].shape != shape:
            raise ValueError(f"/{name} has shape {file[name].shape}, not {shape}")
        _check_plain(file[name])
    row_col = file["row_col"][:].astype(np.int32)
    if shape_of(row_col) != (int(attrs["rows"]), int(attrs["cols"])):
        raise ValueError("rows and cols do not fit /row_col")
    model, record = parse_json(attrs["model"]), parse_json(attrs["provenance"])
    if not isinstance(model, dict) or not isinstance(record, dict):
        raise ValueError("model or provenance is no JSON object")
    if not (_is_mpp(attrs["mpp"]) and 0 < attrs["patch_px"] <= _MAX_PATCH_PX):
        raise ValueError("mpp or patch_px is out of range")
    coldest, warmest = POSSIBLE_TEMPERATURE
    if not (0 <= attrs["threshold"] <= 1 and coldest <= attrs["temperature"] <= warmest):
        raise ValueError("threshold or temperature is out of range")
    if len(attrs["class_names"]) != NUM_CLASSES or not np.isin(file["label"][:], (-1, 0, 1)).all():
        raise ValueError("not two classes")
    return PatientMap(
        patient=plain_name(str(attrs["patient"])),
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


def _image_of(file: h5py.File, content: PatientMap) -> h5py.Dataset | None:
    if "image/rgb" not in file:
        return None
    rows, cols = content.shape
    image, shape = file["image/rgb"], (rows * content.cell_px, cols * content.cell_px, 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(f"/image/rgb is not uint8 {shape}")
    return image


def _read_cam(file: h5py.File, num: int) -> dict[str, Any]:
    """Return the fields of a PatientMap that are about CAMs, none where the file has none."""
    if "cam" not in file:
        return {}
    raw = file["cam/raw"]
    if raw.ndim != 3 or raw.shape[0] != num or not 0 < max(raw.shape[1:]) <= _MAX_CAM_SIDE:
        raise ValueError(f"/cam/raw has shape {raw.shape}")
    _check_plain(raw)
    if raw.nbytes > _MAX_CAM_BYTES:
        raise ValueError(f"CAMs of {raw.nbytes / 1e9:.0f} GB are more than any slide has")
    attrs = file["cam"].attrs
    return {
        "cam": raw[:].astype(np.float32),
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
    attrs, thumbnail, tissue = group.attrs, group["thumbnail"], group["tissue"]
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
