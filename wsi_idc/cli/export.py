"""``wsi-idc export``: write maps or a model as files for other tools."""

from pathlib import Path

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.inputs import find_checkpoints, find_maps
from wsi_idc.cli.options import (
    PATH,
    Number,
    changed,
    checkpoint_option,
    exclude_flagged_option,
    output_options,
    with_default,
)
from wsi_idc.cli.output import echo_note, echo_result, raise_if_any

_FORMATS = ("geojson", "ome-tiff", "csv", "png")
_MODEL = "wsinfer"


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@click.option(
    "--format",
    "formats",
    type=click.Choice([*_FORMATS, _MODEL]),
    multiple=True,
    help="Format to write; may be repeated.  [default: all except wsinfer]",
)
@click.option(
    "--out",
    type=PATH,
    help="Folder of the files.  [default: export; for --format wsinfer: wsinfer]",
)
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Lowest probability at which GeoJSON calls a patch IDC.  [default: the map's threshold]",
)
@exclude_flagged_option
@with_default(
    "--coordinates",
    type=click.Choice(["qupath", "level0", "image"]),
    default="qupath",
    help="Coordinates in GeoJSON. qupath: level-0 px from the corner of the area that QuPath "
    "shows. level0: level-0 px from the corner of the complete slide. image: px of the OME-TIFF. "
    "For a slide that QuPath shows completely (SVS, NDPI), qupath and level0 are the same. "
    "For a pack of a patch tree, all three are the same.",
)
@click.option("--gzip", "compress", is_flag=True, help="Write GeoJSON as .geojson.gz.")
@checkpoint_option
@config_option
@output_options
def export(
    maps: tuple[Path, ...],
    formats: tuple[str, ...],
    out: Path | None,
    threshold: float | None,
    exclude_flagged: bool,
    coordinates: str,
    compress: bool,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Write MAPS or a model as files for other tools.

    \b
    geojson   tiles with measurements, and outlines of regions, for QuPath
    ome-tiff  tissue, probability and CAM as aligned images, for QuPath
    csv       one line for each patch; the first columns are those of WSInfer
    png       each layer as a transparent image, and a legend of the colors
    wsinfer   the model as a folder for WSInfer and its QuPath extension

    MAPS are map files, or folders of map files. Without MAPS, every map in maps/ is exported.
    Existing files with the same names are replaced. If a patient has several slides, the files of a
    slide are in the subfolder PATIENT.

    \b
    Examples:
      wsi-idc export maps/10253.h5 --format geojson --format ome-tiff
      wsi-idc export --format wsinfer --checkpoint runs/mine --out my-model
    """
    unused = changed("threshold", "exclude_flagged", "coordinates", "compress")
    if unused and formats and "geojson" not in formats:
        raise click.UsageError(f"{', '.join(unused)} needs GeoJSON; add --format geojson.")
    if _MODEL in formats:
        if maps or set(formats) != {_MODEL}:
            raise click.UsageError(
                "--format wsinfer writes a model; leave out maps and other formats."
            )
        (path,) = find_checkpoints([checkpoint] if checkpoint else [])
        from wsi_idc.export.wsinfer import write_wsinfer
        from wsi_idc.models.checkpoint import load_finished_checkpoint

        files = write_wsinfer(load_finished_checkpoint(path), out or Path("wsinfer"))
        echo_result({"written": files}, map(str, files), as_json=as_json)
        return
    if checkpoint is not None:
        raise click.UsageError("--checkpoint needs --format wsinfer.")
    paths = find_maps(maps)
    from wsi_idc.export.export import ExportOptions, export_maps

    options = ExportOptions(formats or _FORMATS, threshold, coordinates, compress, exclude_flagged)
    result = export_maps(paths, out or Path("export"), options)
    written = {str(path): files for path, files in result.written.items()}
    failed = {str(path): reason for path, reason in result.failed.items()}
    lines = (str(file) for files in written.values() for file in files)
    echo_result({"written": written, "failed": failed}, lines, as_json=as_json)
    for reason in failed.values() if not as_json else ():
        echo_note(f"not exported: {reason}")
    raise_if_any(failed, len(paths), "maps were not exported")
