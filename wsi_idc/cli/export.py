"""``wsi-idc export``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.inputs import map_files, open_checkpoint
from wsi_idc.cli.options import (
    PATH,
    Number,
    changed,
    checkpoint_option,
    json_option,
    logging_options,
)
from wsi_idc.cli.output import echo, echo_json, one_line
from wsi_idc.core.errors import MapError

if TYPE_CHECKING:
    from wsi_idc.export.export import ExportReport

_FORMATS = ("geojson", "ome-tiff", "csv", "png")
_MODEL = "wsinfer"


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@click.option(
    "--format",
    "formats",
    type=click.Choice([*_FORMATS, _MODEL]),
    multiple=True,
    help="What to write; may be repeated.  [default: all but wsinfer]",
)
@click.option(
    "--out", type=PATH, help="Folder to write into.  [default: export, for wsinfer: wsinfer]"
)
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Probability from which GeoJSON calls a patch IDC.  [default: the map's own]",
)
@click.option(
    "--coordinates",
    type=click.Choice(["level0", "image"]),
    default="level0",
    show_default=True,
    help="Of GeoJSON: px of the slide at full resolution, or of the OME-TIFF; for the map of a "
    "pack they are the same.",
)
@click.option("--gzip", "compress", is_flag=True, help="Write GeoJSON as .geojson.gz.")
@checkpoint_option
@json_option
@logging_options
def export(
    maps: tuple[Path, ...],
    formats: tuple[str, ...],
    out: Path | None,
    threshold: float | None,
    coordinates: str,
    compress: bool,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Write MAPS, or a model, as files that other tools read.

    \b
    geojson   tiles with measurements and outlines of regions, for QuPath
    ome-tiff  tissue, probability and CAM that lie over each other, for QuPath
    csv       one line for each patch, WSInfer's columns first
    png       transparent layers of one size, and what their colours mean
    wsinfer   the checkpoint as a model folder, for WSInfer and its QuPath extension

    MAPS are map files or folders of them; without any, every map in maps/ is written. Files of the
    same names are replaced.

    \b
    Examples:
      wsi-idc export maps/10253.h5 --format geojson --format ome-tiff
      wsi-idc export --format wsinfer --checkpoint runs/mine --out my-model
    """
    idle = changed("threshold", "coordinates", "compress")
    if idle and formats and "geojson" not in formats:
        raise click.UsageError(f"{', '.join(idle)} is of GeoJSON; add --format geojson.")
    if _MODEL in formats:
        if maps or set(formats) != {_MODEL}:
            raise click.UsageError("--format wsinfer writes a model: it goes without maps, alone.")
        _export_model(checkpoint, out or Path("wsinfer"), as_json=as_json)
        return
    if checkpoint is not None:
        raise click.UsageError("--checkpoint goes with --format wsinfer.")
    from wsi_idc.export.export import ExportOptions, export_maps

    paths = map_files(maps)
    options = ExportOptions(formats or _FORMATS, threshold, coordinates, compress)
    report = export_maps(paths, out or Path("export"), options)
    if as_json:
        echo_json(
            {
                "written": {str(path): files for path, files in report.written.items()},
                "failed": {str(path): reason for path, reason in report.failed.items()},
            }
        )
    else:
        _say_report(report)
    if report.failed:
        raise MapError(
            f"{len(report.failed)} of {len(paths)} maps not exported; the reasons are above"
        )


def _say_report(report: "ExportReport") -> None:
    for files in report.written.values():
        for file in files:
            echo(str(file))
    for reason in report.failed.values():
        click.echo(one_line(f"not exported: {reason}"), err=True)


def _export_model(checkpoint: Path | None, out: Path, *, as_json: bool) -> None:
    from wsi_idc.export.wsinfer import write_wsinfer

    files = write_wsinfer(open_checkpoint(checkpoint), out)
    if as_json:
        echo_json({"written": files})
        return
    for file in files:
        echo(str(file))
