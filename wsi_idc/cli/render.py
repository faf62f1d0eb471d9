"""``wsi-idc render``: draw maps as pictures."""

from itertools import product
from pathlib import Path

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.inputs import find_maps
from wsi_idc.cli.options import (
    PATH,
    exclude_flagged_option,
    logging_options,
    threshold_option,
    with_default,
)
from wsi_idc.cli.output import echo, echo_note, raise_if_any
from wsi_idc.core.errors import MapError, WsiIdcError

_VIEWS = ("panels", "overlay", "contours", "cam", "quality", "side-by-side")


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
    help="Format of the pictures; may be repeated.",
)
@with_default(
    "--dpi",
    type=click.IntRange(30, 1200),
    default=300,
    help="Resolution of a PNG, and of the pictures in a PDF.",
)
@click.option(
    "--out",
    type=PATH,
    help="Folder of the pictures; pictures of PATIENT/SLIDE.h5 are in its subfolder PATIENT.  "
    "[default: each map's folder]",
)
@threshold_option
@exclude_flagged_option
@config_option
@logging_options
def render(
    maps: tuple[Path, ...],
    views: tuple[str, ...],
    formats: tuple[str, ...],
    dpi: int,
    out: Path | None,
    threshold: float | None,
    exclude_flagged: bool,
) -> None:
    """Draw MAPS as pictures, at most 180 mm wide.

    \b
    panels        tissue, probability, CAM mosaic and labels; if the map has them,
                  also unsmoothed probability, uncertainty and complete slide
    overlay       probability in color over the tissue in gray
    contours      tissue with the outlines of called and labelled IDC
    cam           CAM in color over the tissue in gray; each map has its own scale
    quality       tissue, novelty and quality flags
    side-by-side  tissue, overlay, cam and labels in a row

    The file of the view "panels" is PATIENT.png; the file of another view is PATIENT-VIEW.png. In a
    PDF, text and outlines are vectors. The PDF of a map always has the same bytes.

    MAPS are map files, or folders of map files. Without MAPS, every map in maps/ is drawn.

    \b
    Examples:
      wsi-idc render maps/10253.h5
      wsi-idc render --view contours --view side-by-side --format pdf --dpi 600
    """
    paths = find_maps(maps)
    from wsi_idc.maps.map_reader import folder_of_slide
    from wsi_idc.render.render import picture_name, render_map

    pictures: dict[tuple[Path, str], list[Path]] = {}
    maps_by_picture: dict[Path, Path] = {}
    for path, view in product(paths, views):
        names = [picture_name(path, view=view, suffix=suffix) for suffix in dict.fromkeys(formats)]
        folder = out / folder_of_slide(path) if out else path.parent
        pictures[path, view] = [folder / name for name in names]
        for file in pictures[path, view]:
            if (other := maps_by_picture.setdefault(file, path)) != path:
                raise MapError(
                    f"{other} and {path} would both be drawn as {file}; "
                    "draw them into different folders with --out"
                )
    failed = []
    for (path, view), files in pictures.items():
        try:
            render_map(
                path,
                *files,
                view=view,
                dpi=dpi,
                threshold=threshold,
                exclude_flagged=exclude_flagged,
            )
        except (WsiIdcError, OSError) as error:
            failed.append(error)
            echo_note(f"not drawn: {error}")
        else:
            for file in files:
                echo(file)
    raise_if_any(failed, len(pictures), "views of maps were not drawn")
