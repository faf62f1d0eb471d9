"""Write a patient's map into an open HDF5 file."""

import json
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_idc.core.files import write_bytes
from wsi_idc.geometry.grid import cell_centers_um, mosaic, scatter_to_grid
from wsi_idc.maps.patient_map import PatientMap, SlideView

FORMAT = "wsi-idc-map"
FORMAT_VERSION = 1
OPTIONAL_COLUMNS = ("uncertainty", "probability_smoothed")
# Of CAMs, which an early layer has as fine as the patches: more than these no reader takes.
MAX_CAM_SIDE = 256  # cells
MAX_CAM_BYTES = 2**32  # of all patches


def write_map(path: Path, content: PatientMap) -> None:
    """Write a map file in one atomic step.

    Raises:
        BusyError: Another process is writing the same map.
    """
    # In memory first: HDF5 may crash the process when the disk fills up under it.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        write_content(file, content)
        file.attrs["complete"] = 1
        file.flush()
        data = file.id.get_file_image()
    write_bytes(path, data)


# Magnification is a word of other tools: 10 um/px times mpp, as they reckon it.
_MAGNIFICATION_TIMES_MPP = 10.0
_WHITE = 255
_CELLS_PER_CHUNK = 8  # of the image, along a row


def write_content(file: h5py.File, content: PatientMap) -> None:
    """Write all that a map holds."""
    _write_root(file, content)
    _write_columns(file, content)
    _write_map_group(file, content)
    if content.cam is not None:
        _write_cam_group(file, content)
    if content.slide is not None:
        _write_slide(file, content.slide)
    if content.patches is not None:
        _write_image(file, content)


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
    columns = zip(OPTIONAL_COLUMNS, (content.uncertainty, content.smoothed), strict=True)
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
    group["index"] = scatter_to_grid(index, content.row_col, shape=content.shape, fill=-1)
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
        group[name] = cell_centers_um(count * parts, step_um=cell_um / parts, origin_um=origin_um)
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
