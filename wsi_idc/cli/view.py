"""``wsi-idc view``: show slides with their maps in a browser."""

import os
import platform
import sys
import tempfile
import webbrowser
from html import escape
from pathlib import Path

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.options import (
    PATH,
    Number,
    annotation_frame_option,
    logging_options,
    with_default,
)
from wsi_idc.cli.output import echo, echo_note
from wsi_idc.core.constants import DEFAULT_MAPS
from wsi_idc.core.errors import MapError
from wsi_idc.core.text import count


@click.command()
@click.argument("paths", nargs=-1, type=PATH)
@click.option(
    "--slides",
    type=PATH,
    help="Folder of the slides, if the slides were moved after the maps were made.",
)
@click.option("--annotations", type=PATH, help="Folder of annotation files, named like the slides.")
@annotation_frame_option
@click.option(
    "--mpp",
    type=Number(min=0, min_open=True),
    help="Microns per px of slides without a map.  [default: the value in the file]",
)
@with_default(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of the server; 0: a free port."
)
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@config_option
@logging_options
def view(
    paths: tuple[Path, ...],
    slides: Path | None,
    annotations: Path | None,
    annotation_frame: str,
    mpp: float | None,
    port: int,
    no_browser: bool,
) -> None:
    """Show slides at full resolution, with maps over the tissue.

    The command starts a web server on this machine, prints its address and opens a browser. Only
    this machine can reach the server, and only with the token in the address. Ctrl-C ends the
    server. On a cluster, the printed line "ssh -N -L ..." makes the address work on your computer.

    PATHS are maps, slides, folders of maps or slides, or patient ids of maps in maps/. Without
    PATHS, all maps in maps/ are shown. If two folders have maps of the same slide, the page shows
    them side by side.

    The command searches for the slide of a map in --slides, then at the path that the map records.
    If there is no such slide, the page shows the picture of the tissue in the map.

    \b
    Examples:
      wsi-idc view
      wsi-idc view 10253
      wsi-idc view maps --slides /scans --annotations outlines
      wsi-idc view maps_a maps_b --no-browser --port 8765
    """
    found = [_find(path) for path in paths or (DEFAULT_MAPS,)]
    from wsi_idc.view.catalog import read_catalog

    catalog = read_catalog(
        found, slides=slides, annotations=annotations, annotation_frame=annotation_frame, mpp=mpp
    )
    import asyncio

    from wsi_idc.runtime.signals import stop_requests
    from wsi_idc.view.server import ViewServer, serve

    server = ViewServer(catalog)

    def started() -> None:
        num = len(server.catalog.items)
        echo_note(f"viewing {count(num, 'map or slide', 'maps or slides')}")
        echo(server.address)
        tunnel = f"ssh -N -L {server.port}:127.0.0.1:{server.port} {platform.node()}"
        echo_note(f"on another computer, run: {tunnel}")
        echo_note("then open the same address there; Ctrl-C ends the server")
        sys.stdout.flush()
        if not no_browser:
            _open_browser(server.address, Path(folder))

    with tempfile.TemporaryDirectory() as folder, stop_requests() as stop:
        asyncio.run(serve(server, stop, port=port, started=started))
    echo_note("the server has ended")


def _find(path: Path) -> Path:
    """Return ``path`` if it exists; else return the map in maps/ whose name is ``path``."""
    from wsi_idc.maps.map_reader import map_path

    if path.exists():
        return path
    if path == DEFAULT_MAPS:
        raise MapError(f"no maps in {path}/; make maps with wsi-idc map, or give other paths")
    name = str(path)
    if not path.is_absolute() and name.count("/") < 2:
        file = map_path(DEFAULT_MAPS, name)
        if file.exists():
            return file
    raise MapError(f"{path}: no such file, and no patient of this name in {DEFAULT_MAPS}/")


def _open_browser(address: str, folder: Path) -> None:
    """Write a page that leads to ``address``, and open this page in a browser.

    The address contains the secret token. Only this user can read the page, but all users of the
    machine can read the command line of the browser.
    """
    has_screen = (
        sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    )
    if not has_screen:
        return
    page = folder / "wsi-idc-view.html"
    page.touch(mode=0o600)
    page.write_text(f'<meta http-equiv="refresh" content="0; url={escape(address)}">')
    webbrowser.open(page.as_uri())
