"""Commands that read maps: ``wsi-idc render``, ``export`` and ``report``."""

from pathlib import Path

import click

from wsi_idc.cli.inputs import find_checkpoints, find_maps, read_checkpoint
from wsi_idc.cli.options import (
    PATH,
    Number,
    changed,
    checkpoint_option,
    logging_options,
    output_options,
    threshold_option,
    with_default,
)
from wsi_idc.cli.output import echo, echo_note, echo_result, raise_if_any
from wsi_idc.core.constants import DEFAULT_MAPS, DEFAULT_REPORT
from wsi_idc.core.errors import MapError, WsiIdcError

_VIEWS = ("panels", "overlay", "contours", "cam", "side-by-side")
_FORMATS = ("geojson", "ome-tiff", "csv", "png")
_MODEL = "wsinfer"


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@with_default(
    "--view",
    "views",
    type=click.Choice(_VIEWS),
    multiple=True,
    default=("panels",),
    help="View to draw; may be repeated.",
)
@with_default(
    "--format",
    "formats",
    type=click.Choice(["png", "pdf"]),
    multiple=True,
    default=("png",),
    help="May be repeated.",
)
@with_default(
    "--dpi",
    type=click.IntRange(30, 1200),
    default=300,
    help="Resolution of a PNG, and of the images in a PDF.",
)
@click.option("--out", type=PATH, help="Folder of pictures.  [default: beside each map]")
@threshold_option
@logging_options
def render(
    maps: tuple[Path, ...],
    views: tuple[str, ...],
    formats: tuple[str, ...],
    dpi: int,
    out: Path | None,
    threshold: float | None,
) -> None:
    """Draw MAPS as pictures, no wider than a journal's page (180 mm).

    \b
    panels        tissue, probability, CAM mosaic, labels, and if the map has
                  them: smoothed probability, uncertainty, the complete slide
    overlay       probability over tissue in gray
    contours      tissue with the outlines of called and labelled IDC
    cam           CAM over tissue in gray, one scale for the patient
    side-by-side  tissue, overlay, cam and labels in a row

    Panels become PATIENT.png, another view PATIENT-VIEW.png. A PDF has text and outlines as vectors
    and is the same, byte for byte, whenever it is made.

    MAPS are map files or folders of them; without any, every map in maps/ is drawn.

    \b
    Examples:
      wsi-idc render maps/10253.h5
      wsi-idc render --view contours --view side-by-side --format pdf --dpi 600
    """
    paths = find_maps(maps)
    from wsi_idc.render.render import picture_name, render_map

    pictures = {
        (path, view): [
            (out or path.parent) / picture_name(path, view=view, suffix=suffix)
            for suffix in dict.fromkeys(formats)
        ]
        for path in paths
        for view in views
    }
    maps_by_picture: dict[Path, Path] = {}
    for (path, _), files in pictures.items():
        for file in files:
            if (other := maps_by_picture.setdefault(file, path)) != path:
                raise MapError(
                    f"{other} and {path} would both be drawn as {file}; "
                    "draw them into different folders with --out"
                )
    failed = []
    for (path, view), files in pictures.items():
        try:
            render_map(path, *files, view=view, dpi=dpi, threshold=threshold)
        except (WsiIdcError, OSError) as error:
            failed.append(error)
            echo_note(f"not drawn: {error}")
        else:
            for file in files:
                echo(file)
    raise_if_any(failed, len(pictures), "views of maps not drawn")


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@click.option(
    "--format",
    "formats",
    type=click.Choice([*_FORMATS, _MODEL]),
    multiple=True,
    help="Format to write; may be repeated.  [default: all but wsinfer]",
)
@click.option(
    "--out", type=PATH, help="Folder to write into.  [default: export, for wsinfer: wsinfer]"
)
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Call a patch IDC in GeoJSON from this probability.  [default: the map's own]",
)
@with_default(
    "--coordinates",
    type=click.Choice(["level0", "image"]),
    default="level0",
    help="Pixels of GeoJSON: of the slide at full resolution, or of the OME-TIFF; for the map of a "
    "pack they are the same.",
)
@click.option("--gzip", "compress", is_flag=True, help="Write GeoJSON as .geojson.gz.")
@checkpoint_option
@output_options
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
    """Write MAPS, or a model, as files for other tools.

    \b
    geojson   tiles with measurements and outlines of regions, for QuPath
    ome-tiff  tissue, probability and CAM as aligned images, for QuPath
    csv       one line for each patch, WSInfer's columns first
    png       transparent layers of one size, and the scale of their colors
    wsinfer   the checkpoint as a model folder, for WSInfer and its QuPath extension

    MAPS are map files or folders of them; without any, every map in maps/ is written. Files of the
    same names are replaced.

    \b
    Examples:
      wsi-idc export maps/10253.h5 --format geojson --format ome-tiff
      wsi-idc export --format wsinfer --checkpoint runs/mine --out my-model
    """
    unused = changed("threshold", "coordinates", "compress")
    if unused and formats and "geojson" not in formats:
        raise click.UsageError(f"{', '.join(unused)} is of GeoJSON; add --format geojson.")
    if _MODEL in formats:
        if maps or set(formats) != {_MODEL}:
            raise click.UsageError(
                "--format wsinfer writes a model: give it without maps and other formats."
            )
        (path,) = find_checkpoints([checkpoint] if checkpoint else [])
        from wsi_idc.export.wsinfer import write_wsinfer

        files = write_wsinfer(read_checkpoint(path), out or Path("wsinfer"))
        echo_result({"written": files}, map(str, files), as_json=as_json)
        return
    if checkpoint is not None:
        raise click.UsageError("--checkpoint goes with --format wsinfer.")
    paths = find_maps(maps)
    from wsi_idc.export.export import ExportOptions, export_maps

    options = ExportOptions(formats or _FORMATS, threshold, coordinates, compress)
    result = export_maps(paths, out or Path("export"), options)
    written = {str(path): files for path, files in result.written.items()}
    failed = {str(path): reason for path, reason in result.failed.items()}
    lines = (str(file) for files in written.values() for file in files)
    echo_result({"written": written, "failed": failed}, lines, as_json=as_json)
    for reason in failed.values() if not as_json else ():
        echo_note(f"not exported: {reason}")
    raise_if_any(failed, len(paths), "maps not exported")


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@with_default("--out", type=PATH, default=DEFAULT_REPORT, help="Folder of the pages.")
@threshold_option
@output_options
def report(maps: tuple[Path, ...], out: Path, threshold: float | None, as_json: bool) -> None:
    """Make a report of MAPS: one page per patient, and one for all of them.

    A page is one HTML file for a browser; it needs no server and no network. It shows the tissue
    under layers, with a movable threshold. index.html shows every patient; cohort.csv and cohort.h5
    are the table, the latter with a link to each map.

    MAPS are map files or folders of them. Without any, the report has every map in maps/, and the
    table is written there; with MAPS or another --threshold it is written into the report's folder.

    \b
    Examples:
      wsi-idc report
      wsi-idc report maps/10253.h5 maps/8864.h5 --out two
    """
    paths = find_maps(maps)
    from wsi_idc.report.report import build_report

    # A table at another threshold must not replace the table of the maps.
    tables = DEFAULT_MAPS if not maps and threshold is None else out
    result = build_report(paths, out, tables=tables, threshold=threshold)
    failed = {str(path): reason for path, reason in result.failed.items()}
    lines = [
        *map(str, result.pages.values()),
        f"{result.csv}, {result.hdf5}: {len(result.pages)} patients",
        f"open {result.index}",
    ]
    echo_result({**vars(result), "failed": failed}, lines, as_json=as_json)
    for reason in failed.values() if not as_json else ():
        echo_note(f"not in the report: {reason}")
    raise_if_any(failed, len(paths), "maps are not in the report")
