"""``wsi-idc render``."""

from pathlib import Path

import click

from wsi_idc.cli.inputs import map_files
from wsi_idc.cli.options import PATH, Number, logging_options
from wsi_idc.cli.output import echo, one_line
from wsi_idc.core.errors import MapError, WsiIdcError

_VIEWS = ("panels", "overlay", "contours", "cam", "side-by-side")


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@click.option(
    "--view",
    "views",
    type=click.Choice(_VIEWS),
    multiple=True,
    default=("panels",),
    show_default=True,
    help="What to draw; may be repeated.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["png", "pdf"]),
    multiple=True,
    default=("png",),
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--dpi",
    type=click.IntRange(30, 1200),
    default=300,
    show_default=True,
    help="Of a PNG, and of the pictures in a PDF.",
)
@click.option("--out", type=PATH, help="Folder of pictures.  [default: beside each map]")
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Probability from which a patch is called IDC.  [default: the map's own]",
)
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
    panels        tissue, probability, CAM mosaic, labels, and what else a map
                  has: smoothed probability, uncertainty, the whole slide
    overlay       probability over tissue in grey
    contours      tissue with the outlines of what is called and labelled IDC
    cam           CAM over tissue in grey, one scale for the patient
    side-by-side  tissue, overlay, cam and labels in a row

    Panels become PATIENT.png, another view PATIENT-VIEW.png. A PDF has text and outlines as such
    and is the same, byte for byte, whenever it is made.

    MAPS are map files or folders of them; without any, every map in maps/ is drawn.

    \b
    Examples:
      wsi-idc render maps/10253.h5
      wsi-idc render --view contours --view side-by-side --format pdf --dpi 600
    """
    from wsi_idc.render.render import picture_name, render_map

    paths = map_files(maps)
    pictures = {
        (path, view): [
            (out or path.parent) / picture_name(path, view=view, suffix=suffix)
            for suffix in dict.fromkeys(formats)
        ]
        for path in paths
        for view in views
    }
    _check_names(pictures)
    failed = {}
    for (path, view), outs in pictures.items():
        try:
            render_map(path, *outs, view=view, dpi=dpi, threshold=threshold)
        except (WsiIdcError, OSError) as error:
            failed[path, view] = error
            click.echo(one_line(f"not drawn: {error}"), err=True)
        else:
            for picture in outs:
                echo(str(picture))
    if failed:
        raise MapError(
            f"{len(failed)} of {len(pictures)} views of maps not drawn; the reasons are above"
        )


def _check_names(pictures: dict[tuple[Path, str], list[Path]]) -> None:
    """Raise if two pictures would be the same file."""
    owners: dict[Path, Path] = {}
    for (path, _), outs in pictures.items():
        for picture in outs:
            if owners.setdefault(picture, path) != path:
                raise MapError(
                    f"{owners[picture]} and {path} would both be drawn as {picture}; "
                    "draw them into different folders with --out"
                )
