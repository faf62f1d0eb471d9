"""``wsi-idc render``."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, logging_options, one_line, say
from wsi_idc.config import DEFAULT_MAPS
from wsi_idc.errors import MapError, WsiIdcError


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@click.option("--out", type=PATH, help="Folder of pictures.  [default: beside each map]")
@click.option("--dpi", type=click.IntRange(30, 1200), default=150, show_default=True)
@logging_options
def render(maps: tuple[Path, ...], out: Path | None, dpi: int) -> None:
    """Draw MAPS as pictures.

    Tissue, probability, Grad-CAM mosaic and labels side by side, one PNG a map.

    Without MAPS, every map in maps/ is drawn.

    \b
    Example:
      wsi-idc render maps/10253.h5 --dpi 300
    """
    from wsi_idc.maps.render import render_map
    from wsi_idc.maps.store import map_paths

    paths = list(maps) or map_paths(DEFAULT_MAPS)
    if not paths:
        raise MapError(f"no maps in {DEFAULT_MAPS}/; make some with wsi-idc map, or name them")
    failed = []
    for path in paths:
        picture = (out or path.parent) / f"{path.stem}.png"
        try:
            render_map(path, picture, dpi=dpi)
        except (WsiIdcError, OSError) as error:
            failed.append(path)
            click.echo(one_line(f"not drawn: {error}"), err=True)
        else:
            say(str(picture))
    if failed:
        raise MapError(f"{len(failed)} of {len(paths)} maps not drawn; the reasons are above")
