"""``wsi-idc info``: describe a file."""

import re
from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.options import PATH, output_options
from wsi_idc.cli.output import echo_result, table_lines
from wsi_idc.core.constants import SHORT_SHA
from wsi_idc.core.errors import MapError, SlideError, WsiIdcError
from wsi_idc.core.metric_table import THRESHOLD_METRICS
from wsi_idc.models.checkpoint_files import BUNDLED, bundled_checkpoint, check_checkpoint_file

_MAX_TEXT = 400
_FLAGGED = "flagged_"  # start of the names of the columns that count flags
_SHA256 = re.compile("[0-9a-f]{64}")
_KNOWN = "wsi-idc info describes packs, checkpoints, runs, maps, cohort files, features and slides"
_OPENED_BY = {
    ".csv": "a table; a spreadsheet opens it",
    ".geojson": "GeoJSON; QuPath opens it",
    ".geojson.gz": "GeoJSON; QuPath opens it",
    ".html": "a page; a browser opens it",
    ".json": "a JSON file; a text editor opens it",
    ".jsonl": "a JSON file; a text editor opens it",
    ".toml": "a job file; wsi-idc job runs it",
    ".txt": "a text file; a text editor opens it",
}


@click.command()
@click.argument("file", type=PATH)
@output_options
def info(file: Path, as_json: bool) -> None:
    """Describe a file.

    FILE is a pack, a checkpoint (.pt), a run directory, a map, a patient file, a cohort file
    (cohort.h5), a folder with a cohort file, a file of wsi-idc features, or a slide. A patient file
    is PATIENT.h5 of a patient with several slides. If FILE is 'bundled', the command describes the
    bundled model. Unknown values are left out, and long values are shortened. --json prints every
    value in full.

    \b
    Example:
      wsi-idc info maps/10253.h5
    """
    record = _describe(file)
    shown = _map_in_words(record) if record["kind"] == "map" else {**record}
    if fractions := shown.get("called_idc_of"):
        names = (f"{name} {value:.1%}" for name, value in fractions.items())
        shown["called_idc_of"] = f"(fraction of all patches) {', '.join(names)}"
    if isinstance(counts := shown.get("flagged"), dict):
        from wsi_idc.maps.layers import flags_in_words

        shown["flagged"] = flags_in_words(counts)
    if shown["kind"] == "checkpoint":
        shown |= _metrics_in_words(shown, f"at the threshold {shown['threshold']:.4g}")
    elif isinstance(model := shown.get("model"), dict):
        shown["model"] = model | _metrics_in_words(model, "at the threshold of the checkpoint")
    known = {name: value for name, value in shown.items() if value is not None}
    rows = ((name.replace("_", " "), _short(value)) for name, value in known.items())
    echo_result(record, table_lines(rows), as_json=as_json)


def _metrics_in_words(record: dict[str, Any], at: str) -> dict[str, Any]:
    """Return the entry "metrics" of a record as text; {} if there are no metrics.

    The text ``at`` names the threshold; it is before the metrics that need a threshold.
    """
    if not isinstance(metrics := record.get("metrics"), dict):
        return {}
    texts = []
    for name, value in metrics.items():
        if isinstance(value, dict):  # such as the metrics on val
            calls = {key: value[key] for key in value if key in THRESHOLD_METRICS}
            others = {key: value[key] for key in value if key not in THRESHOLD_METRICS}
            texts.append(f"{name} {_short(others)}; {at}: {_short(calls)}")
        else:
            texts.append(f"{name} {_short(value)}")
    return {"metrics": ", ".join(texts)}


def _describe(file: Path) -> dict[str, Any]:
    if str(file) == BUNDLED:
        file = bundled_checkpoint()
    if not file.exists():
        raise WsiIdcError(f"{file}: no such file; give a pack, a checkpoint or a map")
    if (file / "best.pt").is_file():
        file = file / "best.pt"
    if file.suffix.lower() == ".pt":
        check_checkpoint_file(file)
        return {"kind": "checkpoint", "file": file, **_describe_checkpoint(file)}
    if file.is_dir():
        file = _cohort_file(file)
    for suffix, opened_by in _OPENED_BY.items():
        if file.name.lower().endswith(suffix):
            table = file.with_suffix(".h5")
            has_table = suffix == ".csv" and table.is_file()
            remedy = f"for totals, give {table}" if has_table else _KNOWN
            raise WsiIdcError(f"{file} is {opened_by}; {remedy}")
    if file.is_file():
        from wsi_idc.core.hdf5 import has_format, read_format
        from wsi_idc.data.pack import is_pack
        from wsi_idc.features.feature_file import FORMAT as FEATURES
        from wsi_idc.maps.cohort import is_cohort
        from wsi_idc.maps.map_reader import has_patient_format, is_map

        for kind, is_kind, describe in (
            ("pack", is_pack, _describe_pack),
            ("map", is_map, _describe_map),
            ("patient", has_patient_format, _describe_patient),
            ("cohort", is_cohort, _describe_cohort),
            ("features", lambda path: has_format(path, FEATURES), _describe_features),
            ("slide", lambda path: path.suffix != ".h5", _describe_slide),
        ):
            if is_kind(file):
                return {"kind": kind, "file": file, **describe(file)}
        read_format(file)  # raises an error if the HDF5 file is damaged
    raise WsiIdcError(
        f"{file}: neither a pack, a checkpoint, a map, a cohort file, features nor a slide"
    )


def _cohort_file(folder: Path) -> Path:
    from wsi_idc.maps.cohort import COHORT_H5, is_cohort
    from wsi_idc.maps.map_reader import map_paths

    if is_cohort(folder / COHORT_H5):
        return folder / COHORT_H5
    if maps := map_paths(folder):
        raise WsiIdcError(f"{folder} is a folder of maps; give one map, such as {maps[0]}")
    raise WsiIdcError(f"{folder} is a folder without best.pt and without maps; {_KNOWN}")


def _attributes(thing: object, names: str) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names.split()}


def _describe_pack(file: Path) -> dict[str, Any]:
    from wsi_idc.data.pack import Pack

    pack = Pack(file)
    label = pack.index["label"]
    edge = (pack.index[["height", "width"]] < pack.info.patch_px).any(axis=1)
    return {
        "patches": len(pack),
        "patients": len(pack.patients),
        "slides": len(pack.slides) or None,
        "non_idc": int((label == 0).sum()),
        "idc": int((label == 1).sum()),
        "unknown_label": int((label < 0).sum()),
        "edge_patches": int(edge.sum()),
        **vars(pack.info),
        "patches_of": {patient: len(pack.rows_of(patient)) for patient in pack.patients},
    }


def _describe_features(file: Path) -> dict[str, Any]:
    from wsi_idc.features.feature_file import describe_features

    record = describe_features(file)
    del record["identity"]
    return record


def _describe_map(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.map_reader import read_map

    shown = read_map(file)
    slide, cam = shown.slide, shown.cam
    second = shown.second_probability
    size = slide and f"{slide.name}, {slide.width} x {slide.height} px at {slide.mpp:g} um/px"
    about = "none"
    if cam is not None:
        about = f"{shown.cam_method} of {shown.cam_class} at {shown.cam_layer}, "
        about += f"{cam.shape[1]} x {cam.shape[2]}"
    return {
        "patient": shown.patient,
        "slide_name": shown.slide_name or None,
        "source": shown.source,
        "patches": len(shown.probability),
        "grid": "{} rows, {} cols".format(*shown.shape),
        **_attributes(shown, "patch_px mpp mpp_source"),
        "called_idc": shown.idc_fraction(),
        **dict.fromkeys(("called_idc_smoothed", "called_idc_unsmoothed")),
        **({f"called_idc_{second.name}": second.idc_fraction()} if second else {}),
        "labelled_idc": int((shown.label == 1).sum()),
        "labelled_patches": int((shown.label >= 0).sum()),
        **_attributes(shown, "threshold temperature"),
        "smoothing": shown.smoothing and dict(shown.smoothing),
        "mean_uncertainty": None if shown.uncertainty is None else float(shown.uncertainty.mean()),
        "mean_novelty": None if shown.novelty is None else float(shown.novelty.mean()),
        "caution": shown.caution or None,
        "flagged": shown.flag_counts() or None,
        "exclude_flagged": shown.exclude_flagged or None,
        "stride_px": shown.cell_px,
        "slide": size,
        "slide_mpp_source": slide and slide.mpp_source,
        "slide_bounds": slide and slide.bounds and str(slide.bounds),
        "cam": about,
        "model": dict(shown.model),
        "provenance": dict(shown.provenance),
    }


def _map_in_words(record: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers in the record of a map by text, such as "9 of 90 patches (10.0%)"."""
    from wsi_idc.maps.layers import flags_in_words
    from wsi_idc.maps.patient_map import role_text

    num = record["patches"]
    words = {
        **record,
        "patient": f"{record['patient']} ({role_text(record['model'])})",
    }
    for name in ("called_idc", "called_idc_smoothed", "called_idc_unsmoothed"):
        if (value := record[name]) is not None:
            words[name] = f"{round(value * num)} of {num} patches ({value:.1%})"
    is_excluded = bool(words.pop("exclude_flagged"))
    words["flagged"] = flags_in_words(record["flagged"] or {}, are_excluded=is_excluded)
    count, num = record["labelled_idc"], words.pop("labelled_patches")
    words["labelled_idc"] = "no labels"
    if num:
        words["labelled_idc"] = f"{count} of {num} labelled patches ({count / num:.1%})"
    if source := words.pop("slide_mpp_source"):
        words["slide"] = f"{record['slide']} ({source})"
    return words


def _describe_patient(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.patient_file import read_patient_file
    from wsi_idc.metrics.classification import nan_to_none

    row, table = read_patient_file(file)
    try:
        fractions = dict(zip(table["slide"], table["idc_fraction"].astype(float), strict=True))
    except (KeyError, ValueError):
        raise MapError(
            f"{file}: the columns of the slides are missing; make the file again with wsi-idc map"
        ) from None
    known = {name: value for name, value in nan_to_none(row).items() if value != ""}
    counts = {name: known.pop(name) for name in [*known] if name.startswith(_FLAGGED)}
    if known.get("flagged") is not None:
        known["flagged"] = {
            name.removeprefix(_FLAGGED): int(num) for name, num in counts.items() if num is not None
        }
    return {**known, "called_idc_of": fractions}


def _describe_cohort(file: Path) -> dict[str, Any]:
    from wsi_idc.maps.cohort import read_cohort_h5

    table = read_cohort_h5(file)
    try:
        totals = table[["patches", "area_mm2", "idc_area_mm2"]].astype(float).sum(skipna=False)
        slides = table.get("slide", [""] * len(table))  # missing in tables of version 0.1.0
        rows = zip(table["patient"], slides, strict=True)
        names = [f"{patient}/{slide}".removesuffix("/") for patient, slide in rows]
        fractions = dict(zip(names, table["idc_fraction"].astype(float), strict=True))
        sums: dict[str, Any] = {**totals, "patches": int(totals["patches"])}
        if "excluded_flags" in table:  # missing in tables of version 0.1.0
            counts = table.filter(like=_FLAGGED).astype(float).sum(min_count=1).dropna()
            flagged = {str(name).removeprefix(_FLAGGED): int(num) for name, num in counts.items()}
            excluded = sorted({text for text in table["excluded_flags"] if text})
            sums |= {"flagged": flagged or None, "excluded_flags": " ".join(excluded) or None}
    except (KeyError, ValueError, OverflowError):
        raise MapError(
            f"{file}: the columns of a cohort are missing; make the file again with wsi-idc report"
        ) from None
    return {"maps": len(table), **sums, "called_idc_of": fractions}


def _describe_slide(file: Path) -> dict[str, Any]:
    from wsi_idc.slides.slide import open_slide

    try:
        slide, mpp_error = open_slide(file), None
    except SlideError as error:
        # Retry with 1 um/px: this succeeds if only the resolution is missing.
        slide = open_slide(file, mpp=1.0)
        mpp_error = str(error).removeprefix(f"{file}: ").removesuffix("; give --mpp")
    with slide:
        return {
            **_attributes(slide, "width height"),
            "bounds": slide.bounds and str(slide.bounds),
            "mpp": None if mpp_error else slide.mpp,
            "mpp_source": mpp_error or slide.mpp_source,
            "levels": [f"{level.width} x {level.height}" for level in slide.levels],
            "fingerprint": slide.fingerprint(),
        }


def _describe_checkpoint(file: Path) -> dict[str, Any]:
    from wsi_idc.models.architecture import num_parameters
    from wsi_idc.models.checkpoint import read_checkpoint
    from wsi_idc.models.registry import architecture

    checkpoint = read_checkpoint(file)
    roles = ("train", "val", "test")
    return {
        **checkpoint.summary(),
        "parameters": num_parameters(architecture(checkpoint.architecture)),
        **_attributes(checkpoint, "class_names threshold temperature"),
        "smoothing": checkpoint.smoothing and vars(checkpoint.smoothing),
        "neighbors": checkpoint.neighbors and checkpoint.neighbors.record(),
        "split": checkpoint.split_spec,
        "patients_of": {role: sorted(checkpoint.patients(role)) for role in roles},
        "config": dict(checkpoint.config),
        "provenance": dict(checkpoint.provenance),
    }


def _short(value: Any) -> str:
    """Return a value as text of at most 400 characters; ``--json`` prints the full value.

    A SHA-256 hash is shortened to its first 12 digits, as in a cohort table. In a dict, keys with
    the value None are left out.
    """
    if isinstance(value, dict):
        parts = {key: part for key, part in value.items() if part is not None}
        value = ", ".join(f"{key} {_short(part)}" for key, part in parts.items())
    elif isinstance(value, list | tuple):
        value = " ".join(_short(part) for part in value)
    elif isinstance(value, float):
        value = f"{value:.4g}"
    text = str(value)
    if _SHA256.fullmatch(text):
        return text[:SHORT_SHA]
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT].rpartition(' ')[0]} ... (all with --json)"
