"""``wsi-idc map``."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.inputs import open_predictor
from wsi_idc.cli.options import (
    CAM_CLASSES,
    PATH,
    cam_options,
    changed,
    compute_options,
    data_option,
    json_option,
    logging_options,
    predictor_options,
    slide_options,
)
from wsi_idc.cli.output import echo, echo_json, one_line
from wsi_idc.core.constants import DEFAULT_MAPS
from wsi_idc.core.errors import WsiIdcError

if TYPE_CHECKING:
    from wsi_idc.maps.builder import MapBuilder
    from wsi_idc.maps.plan import PlannedMap
    from wsi_idc.maps.writer_pool import MapReport

logger = logging.getLogger(__name__)


@click.command("map")
@click.argument("files", nargs=-1, type=PATH)
@click.option("--patient", "patients", multiple=True, help="A patient's id; may be repeated.")
@click.option("--patients-file", type=PATH, help="A text file with a patient's id on each line.")
@click.option("--all", "everyone", is_flag=True, help="Every patient of the data.")
@click.option("--slide", "slides", multiple=True, type=PATH, help="A slide; FILES are more.")
@click.option("--manifest", type=PATH, help="A CSV of slides: slide, patient, mpp.")
@click.option(
    "--shard", metavar="I/N", help="Only the I-th of N parts, 1 to N, of about equal work."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what it takes.")
@predictor_options
@data_option
@click.option("--out", type=PATH, default=DEFAULT_MAPS, show_default=True, help="Folder of maps.")
@slide_options
@cam_options
@click.option("--no-image", is_flag=True, help="Leave the stitched tissue out of the file.")
@click.option("--overwrite", is_flag=True, help="Make maps anew that are there already.")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Run the network through torch.compile: half a minute at first, then faster.",
)
@compute_options
@json_option
@logging_options
def map_(
    files: tuple[Path, ...],
    patients: tuple[str, ...],
    patients_file: Path | None,
    everyone: bool,
    slides: tuple[Path, ...],
    manifest: Path | None,
    shard: str | None,
    dry_run: bool,
    as_json: bool,
    data: Path | None,
    mpp: float | None,
    mask: Path | None,
    min_tissue: float,
    stride: int | None,
    **how: Any,
) -> None:
    """Map patients or slides: probability and CAM.

    Writes one HDF5 file for each patient, with a probability for every patch and the mosaic of
    its CAMs.
    The patches of a slide are cut where it has tissue, at the model's size and microns per pixel.

    After --all or --manifest, cohort.csv and cohort.h5 beside the maps sum them up.

    A map made before by the same checkpoint, settings and data is kept; any other is made anew.
    Stopped, it exits with 75, and the same command goes on with the patients that are left.

    \b
    Examples:
      wsi-idc map --patient 10253
      wsi-idc map --all --data data/idc.h5 --checkpoint runs/mine
      wsi-idc map --slide scans/*.svs --checkpoint runs/mine
    """
    from wsi_idc.data.open_data import open_data
    from wsi_idc.data.patient_list import read_patients
    from wsi_idc.maps.from_pack import PackSource
    from wsi_idc.maps.from_slides import SlideSettings, SlideSource
    from wsi_idc.maps.sharding import parse_shard
    from wsi_idc.runtime.signals import stop_requests

    _check_usage()
    settings = SlideSettings(mpp=mpp, mask=mask, min_tissue=min_tissue, stride_px=stride)
    builder = _builder(**how)
    source: PackSource | SlideSource
    if slides or manifest:
        source = SlideSource.from_files((*slides, *files), manifest, settings)
    else:
        pack = open_data(data)
        logger.info("data: %s", pack)
        listed = read_patients(patients_file) if patients_file else []
        source = PackSource(pack, pack.patients if everyone else [*patients, *listed])
    source = source if shard is None else source.shard(*parse_shard(shard))
    if dry_run:
        _say_plan(source.plan(builder), as_json=as_json)
        return
    # Not before: what packs a tree ends at a signal by itself, and at once.
    with stop_requests() as stop:
        report = replace(builder, stop=stop).build(source)
    # A shard is not the cohort; wsi-idc report writes its table when all of them are done.
    wants_table = bool(everyone or manifest) and shard is None
    _say_made(report, builder.out if wants_table else None, as_json=as_json)


def _check_usage() -> None:
    """Raise where it is not clear what to map, or something is given that would do nothing."""
    given = click.get_current_context().params
    of_slides = bool(given["slides"] or given["manifest"])
    named = bool(given["patients"] or given["patients_file"])
    ways = [named, given["everyone"], bool(given["slides"]), bool(given["manifest"])]
    if sum(ways) != 1 or (given["files"] and not given["slides"]):
        raise click.UsageError(
            "give --patient P (once or more) or --patients-file, or --all, or --slide FILE..., "
            "or --manifest CSV."
        )
    if not of_slides and (idle := changed("mpp", "mask", "min_tissue", "stride")):
        raise click.UsageError(f"{', '.join(idle)} is for slides; a pack has its patches.")
    if of_slides and changed("data"):
        raise click.UsageError("--data is for patients of a pack, not for slides.")
    if given["no_cam"] and (idle := changed("cam_method", "cam_layer", "cam_class")):
        raise click.UsageError(f"{', '.join(idle)} says nothing with --no-cam; leave out one.")


def _builder(
    *,
    checkpoints: tuple[Path, ...],
    tta: bool,
    smooth: bool,
    cam_method: str,
    cam_layer: str | None,
    cam_class: str,
    no_cam: bool,
    no_image: bool,
    device: str,
    precision: str,
    compiled: bool,
    **more: Any,
) -> "MapBuilder":
    from wsi_idc.maps.builder import MapBuilder
    from wsi_idc.models.cam import CamSpec
    from wsi_idc.runtime.device import select_device

    compute = select_device(device, precision, compiled=compiled)
    method = open_predictor(checkpoints, tta=tta, smooth=smooth)
    logger.info("device: %s", compute)
    cam = None if no_cam else CamSpec(cam_method, cam_layer, CAM_CLASSES.index(cam_class))
    return MapBuilder(method, compute, cam=cam, with_image=not no_image, **more)


def _say_made(report: "MapReport", tabled: Path | None, *, as_json: bool) -> None:
    """Say which maps were made, and write and name the table of those in the folder ``tabled``.

    Raises:
        WsiIdcError: A map or the table could not be made; the reasons have been said.
    """
    from wsi_idc.maps.cohort import write_cohort

    table, no_table = None, None
    if tabled is not None:
        try:
            table = write_cohort(tabled)
        except (WsiIdcError, OSError) as error:
            no_table = error  # to be said after what was made
    if as_json:
        echo_json({**vars(report), "table": table})
    else:
        _say_report(report)
        if table is not None:
            echo(f"{table[0]}  what each map says, a row for each patient")
    if no_table:
        click.echo(one_line(f"no table of the maps: {no_table}"), err=True)
    if report.failed:
        raise WsiIdcError(
            f"{len(report.failed)} of {len(report.failed) + len(report.made) + len(report.kept)} "
            f"patients have no map: {', '.join(report.failed)}; the reasons are above"
        )
    if no_table:
        raise WsiIdcError("the maps are made, but no table of them; the reason is above")


def _say_plan(plan: "list[PlannedMap]", *, as_json: bool) -> None:
    if as_json:
        echo_json([vars(one) for one in plan])
    else:
        _say_each(plan)
    if failed := [one.patient for one in plan if not one.is_mappable]:
        raise WsiIdcError(
            f"{len(failed)} of {len(plan)} patients would have no map: {', '.join(failed)}; the "
            "reasons are above"
        )


def _say_each(plan: "list[PlannedMap]") -> None:
    for one in plan:
        echo(f"{one.patient}: {one.state}, {one.num_patches} patches, {one.disk_mb:.1f} MB")
    due = [one for one in plan if one.state == "to do"]
    echo(
        f"{len(due)} of {len(plan)} to do: {sum(one.num_patches for one in due)} patches, "
        f"{sum(one.disk_mb for one in due):.0f} MB on disk, about "
        f"{max((one.memory_mb for one in due), default=0):.0f} MB of memory beside the model"
    )


def _say_report(report: "MapReport") -> None:
    for patient, path in report.made.items():
        echo(
            f"{path}  {report.patches[patient]} patches, "
            f"{report.idc_fraction[patient]:.1%} called IDC"
        )
    if report.kept:
        names = ", ".join(list(report.kept)[:5]) + (", ..." if len(report.kept) > 5 else "")
        echo(
            f"{len(report.kept)} kept, made before by the same checkpoint, settings and data: "
            f"{names}"
        )
    if not (report.made or report.failed):
        echo("nothing to compute")
    for patient, reason in report.failed.items():
        click.echo(one_line(f"no map of {patient}: {reason}"), err=True)
