"""``wsi-idc map``: compute maps of patients or slides."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.inputs import (
    check_inputs,
    find_checkpoints,
    open_predictor,
    open_source,
    split_inputs,
)
from wsi_idc.cli.options import (
    CAM_CLASSES,
    PATH,
    cam_options,
    changed,
    compute_options,
    data_option,
    exclude_flagged_option,
    input_options,
    output_options,
    predictor_options,
    slide_options,
    with_default,
)
from wsi_idc.cli.output import echo_note, echo_result, raise_if_any
from wsi_idc.core.constants import DEFAULT_MAPS
from wsi_idc.core.errors import WsiIdcError
from wsi_idc.core.text import count, shorten_list

if TYPE_CHECKING:
    from wsi_idc.maps.builder import MapBuilder
    from wsi_idc.maps.from_pack import PackSource
    from wsi_idc.maps.from_slides import SlideSource
    from wsi_idc.maps.map_writer import MapReport
    from wsi_idc.maps.plan import PlannedMap

logger = logging.getLogger(__name__)
_MAX_UPDATED = 1000  # maps; reading them for the table takes half a minute
_MAX_REASONS = 20  # reasons to distrust or not to make a map that are printed


@click.command("map")
@input_options
@click.option("--dry-run", is_flag=True, help="Print the plan, memory and disk space; map nothing.")
@predictor_options
@click.option(
    "--smooth/--no-smooth",
    default=None,
    help="Also smooth each patient's probabilities over neighboring patches.  [default: smooth if "
    "the checkpoint has a neighbor model]",
)
@data_option
@with_default("--out", type=PATH, default=DEFAULT_MAPS, help="Folder of the maps.")
@slide_options
@cam_options
@exclude_flagged_option
@click.option("--no-image", is_flag=True, help="Write no picture of the tissue.")
@click.option("--overwrite", is_flag=True, help="Replace existing maps.")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the network with torch.compile. This takes half a minute; maps are then faster.",
)
@compute_options
@config_option
@output_options
def map_(
    files: tuple[Path, ...],
    patients: tuple[str, ...],
    everyone: bool,
    slides: tuple[Path, ...],
    manifest: Path | None,
    shard: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make maps of patients or slides, with probability and CAM.

    An argument is a slide or a folder of slides if the file or folder exists, or if the argument
    has a file ending. All other arguments are ids of patients.

    The command writes one HDF5 file for each patient or slide. The file has the probability and the
    quality flags (blur, pen, fold, glass) of every patch, and all CAMs. A slide is cut into
    patches where it has tissue; the patches have the size and the microns per pixel of the model.
    With --all or --manifest, the command also writes a table of all maps (cohort.csv and cohort.h5)
    beside the maps. Without these options, the command only updates an existing table. If a patient
    has several slides in the manifest or the data, each slide has a map PATIENT/SLIDE.h5;
    PATIENT.h5 has totals and links to the maps.

    An existing map of the same checkpoint, settings and data is kept. With --overwrite, any other
    existing map is replaced. Without --overwrite, the patient of such a map is listed as not done.
    After a stop (exit code 75) the same command continues with the remaining patients.

    \b
    Examples:
      wsi-idc map --patient 10253
      wsi-idc map scan.svs
      wsi-idc map --all --data data/idc.h5 --checkpoint runs/mine
      wsi-idc map --slide scans/ --checkpoint runs/mine
    """
    patients, slides = split_inputs(files, patients, slides)
    _check_usage(patients, slides)
    paths = find_checkpoints(options["checkpoints"])
    source = open_source(patients, slides)

    from wsi_idc.runtime.signals import stop_requests

    builder = _builder(paths, options)
    if dry_run:
        _echo_plan(source.plan(builder), as_json=as_json)
        return
    # A signal before this line stops the command at once. In this block, maps are saved first.
    with stop_requests() as stop:
        report = replace(builder, stop=stop).build(source)
    # A shard is only a part of the cohort: it writes no table. wsi-idc report writes the table.
    is_cohort = bool(everyone or manifest) and shard is None
    has_table = is_cohort or _updates_table(report, builder.out, is_shard=shard is not None)
    regrouped = _find_regrouped(source, builder.out) if is_cohort else []
    _echo_report(report, builder.out, regrouped, has_table=has_table, as_json=as_json)


def _check_usage(patients: tuple[str, ...], slides: tuple[Path, ...]) -> None:
    """Raise UsageError if the inputs are ambiguous, or if an option would have no effect."""
    check_inputs(patients, slides)
    given = click.get_current_context().params
    if given["no_cam"] and (unused := changed("cam_method", "cam_layer", "cam_class")):
        raise click.UsageError(
            f"{', '.join(unused)} has no effect with --no-cam; leave out one of the options."
        )


def _builder(paths: list[Path], given: Mapping[str, Any]) -> "MapBuilder":
    from wsi_idc.maps.builder import MapBuilder
    from wsi_idc.models.cam import CamSpec
    from wsi_idc.runtime.device import select_device

    device_config = select_device(given["device"], given["precision"], compiled=given["compiled"])
    predictor = open_predictor(paths, tta=given["tta"], smooth=given["smooth"])
    logger.info("device: %s", device_config)
    cam_class = CAM_CLASSES.index(given["cam_class"])
    cam = None if given["no_cam"] else CamSpec(given["cam_method"], given["cam_layer"], cam_class)
    same = {name: given[name] for name in ("out", "batch_size", "overwrite", "exclude_flagged")}
    return MapBuilder(predictor, device_config, cam=cam, with_image=not given["no_image"], **same)


def _find_regrouped(source: "PackSource | SlideSource", folder: Path) -> list[Path]:
    """Return the files of an earlier run that assigned the slides to other patients."""
    from wsi_idc.maps.from_slides import SlideSource
    from wsi_idc.maps.regrouped import find_regrouped

    files = [row.slide for row in source.slides] if isinstance(source, SlideSource) else []
    return find_regrouped(folder, source.names, files)


def _updates_table(report: "MapReport", folder: Path, *, is_shard: bool) -> bool:
    """Return True if the cohort table in ``folder`` is older than the maps and must be updated.

    For a shard or many maps, an older table is not updated: print a note and return False.
    """
    from wsi_idc.maps.cohort import COHORT_CSV, is_older_table
    from wsi_idc.maps.map_reader import map_paths

    if not is_older_table(folder, [*report.made.values(), *report.kept.values()]):
        return False
    if not is_shard and len(map_paths(folder)) <= _MAX_UPDATED:
        return True
    table = folder / COHORT_CSV
    echo_note(f"{table} is older than these maps; --all or --manifest without --shard updates it")
    return False


def _echo_report(
    report: "MapReport", folder: Path, regrouped: list[Path], *, has_table: bool, as_json: bool
) -> None:
    """If ``has_table``, write the table of the maps in ``folder``; then print the report.

    ``regrouped`` has the maps and pictures of an earlier run that assigned slides to other
    patients.
    """
    from wsi_idc.maps.cohort import write_cohort
    from wsi_idc.maps.map_reader import map_path
    from wsi_idc.maps.plan import find_other_settings

    table, table_error = None, None
    if has_table:
        try:
            table = write_cohort(folder, report.summaries)
        except (WsiIdcError, OSError) as error:
            table_error = error  # printed below, after the maps
    lines = [*_report_lines(report), *([f"{table[0]}  one row for each map"] if table else [])]
    values = {name: value for name, value in vars(report).items() if name != "summaries"}
    echo_result({**values, "table": table, "regrouped": regrouped}, lines, as_json=as_json)
    for name in [] if as_json else list(report.failed)[:_MAX_REASONS]:
        has_map = map_path(folder, name).exists()
        what = f"map of {name} not replaced" if has_map else f"no map of {name}"
        echo_note(f"{what}: {report.failed[name]}")
    if not as_json and (num_more := len(report.failed) - _MAX_REASONS) > 0:
        echo_note(f"and {num_more} more; --json lists the reasons of all")
    if regrouped:
        echo_note(
            f"kept {count(len(regrouped), 'file')} of an earlier run in which slides had other "
            "patients; the tables include these maps, so remove the outdated files: "
            f"{shorten_list(regrouped)}"
        )
    if not has_table and (other := find_other_settings(folder, report.made.values())):
        echo_note(
            f"{other[0]} beside the new maps was made with another {other[1]}; compare only maps "
            "of the same settings, or give another --out"
        )
    if table_error:
        echo_note(f"the table of the maps is not written: {table_error}")
    num_all = len(report.failed) + len(report.made) + len(report.kept)
    raise_if_any(report.failed, num_all, f"maps were not made: {shorten_list(report.failed)}")
    if table_error:
        raise WsiIdcError("the maps are written, but their table is not; the reason is above")


def _report_lines(report: "MapReport") -> Iterator[str]:
    from wsi_idc.maps.layers import flags_in_words

    for patient, path in report.made.items():
        unsmoothed = report.unsmoothed_idc_fraction.get(patient)
        called = f"{report.idc_fraction[patient]:.1%} called IDC"
        called += "" if unsmoothed is None else f", {unsmoothed:.1%} before smoothing"
        yield f"{path}  {count(report.patches[patient], 'patch', 'patches')}, {called}"
    flagged: Counter[str] = Counter()
    for counts in report.flagged.values():
        flagged.update(counts)
    if flagged:
        yield f"flagged: {flags_in_words(flagged)}"
    if cautions := [f"  {name}: {text}" for name, text in report.caution.items() if text]:
        yield from ("", *cautions[:_MAX_REASONS])
        if (num_more := len(cautions) - _MAX_REASONS) > 0:
            yield f"  and {num_more} more; wsi-idc info MAP prints the caution of a map"
        yield "such maps can be wrong everywhere: compare stain, scanner, focus and resolution"
        yield "with the training data, or train on such tissue"
    if report.kept:
        settings = "because checkpoint, settings and data are the same"
        yield f"{len(report.kept)} kept, {settings}: {shorten_list(report.kept)}"
    if report.without_flags:
        num = count(len(report.without_flags), "kept map has", "kept maps have")
        yield f"{num} no quality flags (of an older version); --overwrite adds them"
    if not (report.made or report.failed):
        yield "nothing to compute"


def _echo_plan(plan: "list[PlannedMap]", *, as_json: bool) -> None:
    echo_result([vars(planned) for planned in plan], _plan_lines(plan), as_json=as_json)
    failed = [planned.map_name for planned in plan if not planned.is_mappable]
    raise_if_any(failed, len(plan), f"maps would not be made: {shorten_list(failed)}")


def _plan_lines(plan: "list[PlannedMap]") -> Iterator[str]:
    for planned in plan:
        size = f", {count(planned.num_patches, 'patch', 'patches')}, {planned.disk_mb:.1f} MB"
        yield f"{planned.map_name}: {planned.state}{size if planned.is_mappable else ''}"
    todo = [planned for planned in plan if planned.state == "to do"]
    yield (
        f"{len(todo)} of {len(plan)} to do: "
        f"{count(sum(planned.num_patches for planned in todo), 'patch', 'patches')}, "
        f"{sum(planned.disk_mb for planned in todo):,.0f} MB on disk, "
        f"{max((planned.memory_mb for planned in todo), default=0):,.0f} MB of memory "
        "besides the model"
    )
