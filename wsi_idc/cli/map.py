"""``wsi-idc map``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.options import (
    CAM_CLASSES,
    PATH,
    cam_options,
    compute_options,
    data_option,
    json_option,
    logging_options,
    method_options,
    one_line,
    open_method,
    say,
    say_json,
)
from wsi_idc.config import DEFAULT_MAPS
from wsi_idc.errors import WsiIdcError

if TYPE_CHECKING:
    from wsi_idc.maps.work import MapReport

logger = logging.getLogger(__name__)


@click.command("map")
@click.option("--patient", "patients", multiple=True, help="A patient's id; may be repeated.")
@click.option("--all", "everyone", is_flag=True, help="Every patient of the data.")
@method_options
@data_option
@click.option("--out", type=PATH, default=DEFAULT_MAPS, show_default=True, help="Folder of maps.")
@cam_options
@click.option("--no-image", is_flag=True, help="Leave the stitched tissue out of the file.")
@click.option("--overwrite", is_flag=True, help="Make maps anew that are there already.")
@compute_options
@json_option
@logging_options
def map_(
    patients: tuple[str, ...],
    everyone: bool,
    checkpoints: tuple[Path, ...],
    tta: bool,
    smooth: bool,
    data: Path | None,
    out: Path,
    cam_method: str,
    cam_layer: str | None,
    cam_class: str,
    no_cam: bool,
    no_image: bool,
    overwrite: bool,
    device: str,
    precision: str,
    batch_size: int,
    as_json: bool,
) -> None:
    """Map patients: probability and Grad-CAM.

    Writes one HDF5 file a patient, with a probability for every patch and the mosaic of its CAMs.

    A map made before by the same checkpoint, settings and data is kept; any other is made anew.
    Stopped, it exits with 75, and the same command goes on with the patients that are left.

    \b
    Examples:
      wsi-idc map --patient 10253
      wsi-idc map --all --data data/idc.h5 --checkpoint runs/mine
    """
    from wsi_idc.data.source import open_data
    from wsi_idc.hpc.preempt import stop_requests
    from wsi_idc.maps.build import build_maps
    from wsi_idc.maps.work import MapWork
    from wsi_idc.models.cam import CamSpec
    from wsi_idc.models.device import choose_compute

    if everyone == bool(patients):
        raise click.UsageError("give --patient P (once or more) or --all.")
    cam = None if no_cam else CamSpec(cam_method, cam_layer, CAM_CLASSES.index(cam_class))
    compute = choose_compute(device, precision)
    pack = open_data(data)
    method = open_method(checkpoints, tta=tta, smooth=smooth)
    logger.info("data: %s; device: %s", pack.path, compute)
    with stop_requests() as stop:
        work = MapWork(
            method=method,
            compute=compute,
            out=out,
            cam=cam,
            with_image=not no_image,
            batch_size=batch_size,
            overwrite=overwrite,
            stop=stop,
        )
        chosen = pack.patients if everyone else list(dict.fromkeys(patients))
        report = build_maps(work, pack, chosen)
    if as_json:
        say_json(vars(report))
    else:
        _say_report(report)
    if report.failed:
        raise WsiIdcError(
            f"{len(report.failed)} of {len(report.failed) + len(report.made) + len(report.kept)} "
            f"patients have no map: {', '.join(report.failed)}; the reasons are above"
        )


def _say_report(report: "MapReport") -> None:
    for patient, path in report.made.items():
        say(
            f"{path}  {report.patches[patient]} patches, "
            f"{report.idc_fraction[patient]:.1%} called IDC"
        )
    if report.kept:
        names = ", ".join(list(report.kept)[:5]) + (", ..." if len(report.kept) > 5 else "")
        say(
            f"{len(report.kept)} kept, made before by the same checkpoint, settings and data: "
            f"{names}"
        )
    if not (report.made or report.failed):
        say("nothing to compute")
    for patient, reason in report.failed.items():
        click.echo(one_line(f"no map of {patient}: {reason}"), err=True)
