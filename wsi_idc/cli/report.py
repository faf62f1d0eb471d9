"""``wsi-idc report``."""

from pathlib import Path

import click

from wsi_idc.cli.inputs import map_files
from wsi_idc.cli.options import PATH, Number, json_option, logging_options
from wsi_idc.cli.output import echo, echo_json, one_line
from wsi_idc.core.constants import DEFAULT_MAPS, DEFAULT_REPORT
from wsi_idc.core.errors import MapError


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@click.option(
    "--out", type=PATH, default=DEFAULT_REPORT, show_default=True, help="Folder of the pages."
)
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Call a patch IDC from this probability.  [default: each map's own]",
)
@json_option
@logging_options
def report(maps: tuple[Path, ...], out: Path, threshold: float | None, as_json: bool) -> None:
    """Make a report of MAPS: a page a patient, and one for all of them.

    A page is one HTML file to open in a browser, without a server or a network: tissue, the layers
    over it, a threshold to move. index.html shows every patient; cohort.csv and cohort.h5 are the
    table, the latter with a link to each map.

    MAPS are map files or folders of them. Without any, every map in maps/ is in the report, and the
    table lies among them; that of MAPS, or at another --threshold, lies in the report's folder.

    \b
    Examples:
      wsi-idc report
      wsi-idc report maps/10253.h5 maps/8864.h5 --out two
    """
    from wsi_idc.report.report import build_report

    paths = map_files(maps)
    # A table at another threshold is not that of the maps.
    tables = DEFAULT_MAPS if not maps and threshold is None else out
    made = build_report(paths, out, tables=tables, threshold=threshold)
    if as_json:
        echo_json(vars(made) | {"failed": {str(path): why for path, why in made.failed.items()}})
    else:
        for path in made.pages.values():
            echo(str(path))
        echo(f"{made.csv}, {made.hdf5}: {len(made.pages)} patients")
        echo(f"open {made.index}")
        for reason in made.failed.values():
            click.echo(one_line(f"not in the report: {reason}"), err=True)
    if made.failed:
        raise MapError(
            f"{len(made.failed)} of {len(paths)} maps are not in the report; the reasons are above"
        )
