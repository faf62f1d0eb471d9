"""``wsi-idc info``."""

from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.options import PATH, json_option, logging_options
from wsi_idc.cli.output import echo_result, table_lines
from wsi_idc.core.errors import MapError, SlideError, WsiIdcError
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint, check_checkpoint_file

_MAX_TEXT = 400


@click.command()
@click.argument("file", type=PATH)
@json_option
@logging_options
def info(file: Path, as_json: bool) -> None:
    """Describe a file.

    FILE is a pack, a checkpoint (.pt) or the folder of its run, a map, a cohort file or a slide;
    'bundled' is the bundled model.

    \b
    Example:
      wsi-idc info maps/10253.h5
    """
    record = _describe(file)
    rows = ((name.replace("_", " "), _short(value)) for name, value in record.items())
    echo_result(record, table_lines(rows), as_json=as_json)


def _describe(file: Path) -> dict[str, Any]:
    if str(file) == BUNDLED:
        file = bundled_checkpoint()
    if not file.exists():
        raise WsiIdcError(f"{file}: no such file; give a pack, a checkpoint or a map")
    if (file / "best.pt").is_file():
        file = file / "best.pt"
    if file.suffix.lower() == ".pt":
        return _describe_checkpoint(file)
    if not file.is_file():
        raise _unknown_kind(file)
    from wsi_idc.core.hdf5 import read_format
    from wsi_idc.data.pack import is_pack
    from wsi_idc.maps.cohort_file import is_cohort
    from wsi_idc.maps.map_reader import is_map

    if is_pack(file):
        return _describe_pack(file)
    if is_map(file):
        return _describe_map(file)
    if is_cohort(file):
        return _describe_cohort(file)
    if file.suffix != ".h5":
        return _describe_slide(file)
    read_format(file)  # raises if the file is damaged
    raise _unknown_kind(file)


def _unknown_kind(file: Path) -> WsiIdcError:
    return WsiIdcError(f"{file}: neither a pack, a checkpoint, a map, a cohort file nor a slide")


def _describe_pack(file: Path) -> dict[str, Any]:
    from wsi_idc.data.pack import Pack
    from wsi_idc.data.splits import patient_table

    pack = Pack(file)
    label = pack.index["label"]
    edge = (pack.index[["height", "width"]] < pack.info.patch_px).any(axis=1)
    return {
        "kind": "pack",
        "file": file,
        "patches": len(pack),
        "patients": len(pack.patients),
        "non_idc": int((label == 0).sum()),
        "idc": int((label == 1).sum()),
        "unknown_label": int((label < 0).sum()),
        "edge_patches": int(edge.sum()),
        **vars(pack.info),
        "patches_of": patient_table(pack)["patches"].to_dict(),
    }


def _describe_map(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.map_reader import read_map

    patient_map = read_map(file)
    rows, cols = patient_map.shape
    slide, cam, uncertainty = patient_map.slide, patient_map.cam, patient_map.uncertainty
    return {
        "kind": "map",
        "file": file,
        "patient": patient_map.patient,
        "source": patient_map.source,
        "patches": len(patient_map.probability),
        "grid": f"{rows} rows, {cols} cols",
        "patch_px": patient_map.patch_px,
        "mpp": patient_map.mpp,
        "mpp_source": patient_map.mpp_source,
        "called_idc": patient_map.idc_fraction(),
        "called_idc_smoothed": patient_map.smoothed_idc_fraction(),
        "labelled_idc": int((patient_map.label == 1).sum()),
        "threshold": patient_map.threshold,
        "temperature": patient_map.temperature,
        "smoothing": None if patient_map.smoothing is None else dict(patient_map.smoothing),
        "mean_uncertainty": None if uncertainty is None else float(uncertainty.mean()),
        "stride_px": patient_map.cell_px,
        "slide": slide
        and f"{slide.name}, {slide.width} x {slide.height} px at {slide.mpp:g} um/px",
        "cam": "none"
        if cam is None
        else f"{patient_map.cam_method} of {patient_map.cam_class} at {patient_map.cam_layer}, "
        f"{cam.shape[1]} x {cam.shape[2]}",
        "model": dict(patient_map.model),
        "provenance": dict(patient_map.provenance),
    }


def _describe_cohort(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.cohort_file import read_cohort_h5

    table = read_cohort_h5(file)
    try:
        totals = table[["patches", "area_mm2", "idc_area_mm2"]].astype(float).sum(skipna=False)
        num_patches = int(totals["patches"])
        fractions = dict(zip(table["patient"], table["idc_fraction"].astype(float), strict=True))
    except (KeyError, ValueError, OverflowError):
        raise MapError(
            f"{file}: a table without the columns of a cohort; make it again with wsi-idc report"
        ) from None
    return {
        "kind": "cohort",
        "file": file,
        "maps": len(table),
        "patches": num_patches,
        "area_mm2": totals["area_mm2"],
        "idc_area_mm2": totals["idc_area_mm2"],
        "called_idc_of": fractions,
    }


def _describe_slide(file: Path) -> dict[str, Any]:
    from wsi_idc.slides.slide import open_slide

    try:
        slide, mpp_error = open_slide(file), None
    except SlideError as error:
        # Without a resolution the rest can be described; another error is raised again here.
        slide = open_slide(file, mpp=1.0)
        mpp_error = str(error).removeprefix(f"{file}: ").removesuffix("; give --mpp")
    with slide:
        return {
            "kind": "slide",
            "file": file,
            "width": slide.width,
            "height": slide.height,
            "mpp": None if mpp_error else slide.mpp,
            "mpp_source": mpp_error or slide.mpp_source,
            "levels": [f"{level.width} x {level.height}" for level in slide.levels],
            "fingerprint": slide.fingerprint(),
        }


def _describe_checkpoint(file: Path) -> dict[str, Any]:
    check_checkpoint_file(file)
    from wsi_idc.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(file)
    return {
        "kind": "checkpoint",
        "file": file,
        **checkpoint.summary(),
        "parameters": sum(value.numel() for value in checkpoint.build().parameters()),
        "class_names": checkpoint.class_names,
        "threshold": checkpoint.threshold,
        "temperature": checkpoint.temperature,
        "smoothing": None if checkpoint.smoothing is None else vars(checkpoint.smoothing),
        "split": checkpoint.split_spec,
        "patients_of": {
            role: sorted(checkpoint.patients(role)) for role in ("train", "val", "test")
        },
        "config": dict(checkpoint.config),
        "provenance": dict(checkpoint.provenance),
    }


def _short(value: Any) -> str:
    """Return a value as short text; ``--json`` has it in full."""
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    elif isinstance(value, list | tuple):
        value = " ".join(_short(part) for part in value)
    elif isinstance(value, float):
        value = f"{value:.4g}"
    text = str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
