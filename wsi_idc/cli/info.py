"""``wsi-idc info``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import PATH, json_option, logging_options
from wsi_idc.cli.output import echo_json, echo_table
from wsi_idc.core.errors import MapError, SlideError, WsiIdcError

if TYPE_CHECKING:
    from wsi_idc.maps.patient_map import PatientMap, SlideView


@click.command()
@click.argument("file", type=PATH)
@json_option
@logging_options
def info(file: Path, as_json: bool) -> None:
    """Say what is in a file.

    FILE is a pack, a checkpoint (.pt) or the folder of its run, a map, a cohort file or a slide;
    'bundled' is the bundled model.

    \b
    Example:
      wsi-idc info maps/10253.h5
    """
    found = _describe(file)
    if as_json:
        echo_json(found)
    else:
        echo_table((name.replace("_", " "), _short(value)) for name, value in found.items())


def _describe(file: Path) -> dict[str, Any]:
    from wsi_idc.core.hdf5 import read_format
    from wsi_idc.data.pack import is_pack
    from wsi_idc.maps.cohort_file import is_cohort
    from wsi_idc.maps.map_reader import is_map
    from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint

    if str(file) == BUNDLED:
        file = bundled_checkpoint()
    if not file.exists():
        raise WsiIdcError(f"{file}: no such file; give a pack, a checkpoint or a map")
    if (file / "best.pt").is_file():
        file = file / "best.pt"
    if is_pack(file):
        return _describe_pack(file)
    if is_map(file):
        return _describe_map(file)
    if is_cohort(file):
        return _describe_cohort(file)
    if file.suffix.lower() == ".pt":
        return _describe_checkpoint(file)
    if file.is_file() and file.suffix != ".h5":
        return _describe_slide(file)
    if file.is_file():
        read_format(file)  # raises if the file is damaged
    raise WsiIdcError(f"{file}: neither a pack, a checkpoint, a map, a cohort file nor a slide")


def _describe_pack(file: Path) -> dict[str, Any]:
    from wsi_idc.data.pack import Pack
    from wsi_idc.data.splits import patient_table

    pack = Pack(file)
    edge = (pack.index[["height", "width"]] < pack.info.patch_px).any(axis=1)
    table = patient_table(pack)
    return {
        "kind": "pack",
        "file": file,
        "patches": len(pack),
        "patients": len(pack.patients),
        "non_idc": int((pack.index["label"] == 0).sum()),
        "idc": int((pack.index["label"] == 1).sum()),
        "unknown_label": int((pack.index["label"] < 0).sum()),
        "edge_patches": int(edge.sum()),
        **vars(pack.info),
        "patches_of": table["patches"].to_dict(),
    }


def _describe_map(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.map_reader import read_map

    content = read_map(file)
    rows, cols = content.shape
    return {
        "kind": "map",
        "file": file,
        "patient": content.patient,
        "source": content.source,
        "patches": len(content.probability),
        "grid": f"{rows} rows, {cols} cols",
        "patch_px": content.patch_px,
        "mpp": content.mpp,
        "mpp_source": content.mpp_source,
        "called_idc": content.idc_fraction(),
        "called_idc_smoothed": content.smoothed_idc_fraction(),
        "labelled_idc": int((content.label == 1).sum()),
        "threshold": content.threshold,
        "temperature": content.temperature,
        "smoothing": None if content.smoothing is None else dict(content.smoothing),
        "mean_uncertainty": (
            None if content.uncertainty is None else float(content.uncertainty.mean())
        ),
        "stride_px": content.cell_px,
        "slide": None if content.slide is None else _describe_view(content.slide),
        "cam": _describe_cam(content),
        "model": dict(content.model),
        "provenance": dict(content.provenance),
    }


def _describe_cam(content: "PatientMap") -> str:
    if content.cam is None:
        return "none"
    _, height, width = content.cam.shape
    return f"{content.cam_method} of {content.cam_class} at {content.cam_layer}, {height} x {width}"


def _describe_view(slide: "SlideView") -> str:
    return f"{slide.name}, {slide.width} x {slide.height} px at {slide.mpp:g} um/px"


def _describe_cohort(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.cohort_file import read_cohort_h5

    table = read_cohort_h5(file)
    try:
        totals = table[["patches", "area_mm2", "idc_area_mm2"]].astype(float).sum(skipna=False)
        num_patches = int(totals["patches"])
        fractions = dict(zip(table["patient"], table["idc_fraction"].astype(float), strict=True))
    except (KeyError, ValueError, OverflowError):
        raise MapError(
            f"{file}: a table without the columns of a cohort; make it anew with wsi-idc report"
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
        slide, why_not = open_slide(file), None
    except SlideError as error:
        # Without its resolution the rest can be seen all the same; what else may be wrong with
        # the file is raised again.
        slide = open_slide(file, mpp=1.0)
        why_not = str(error).removeprefix(f"{file}: ").removesuffix("; give --mpp")
    with slide:
        return {
            "kind": "slide",
            "file": file,
            "width": slide.width,
            "height": slide.height,
            "mpp": None if why_not else slide.mpp,
            "mpp_source": why_not or slide.mpp_source,
            "levels": [f"{one.width} x {one.height}" for one in slide.levels],
            "fingerprint": slide.fingerprint(),
        }


def _describe_checkpoint(file: Path) -> dict[str, Any]:
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
    """Return a value as text for people; ``--json`` has it whole."""
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    elif isinstance(value, list | tuple):
        value = " ".join(_short(part) for part in value)
    elif isinstance(value, float):
        value = f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 400 else f"{text[:397]}..."
