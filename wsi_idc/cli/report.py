"""``wsi-idc report``: make HTML pages of maps."""

from pathlib import Path

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.inputs import find_maps
from wsi_idc.cli.options import (
    PATH,
    exclude_flagged_option,
    output_options,
    threshold_option,
    with_default,
)
from wsi_idc.cli.output import echo_note, echo_result, raise_if_any
from wsi_idc.core.constants import DEFAULT_MAPS, DEFAULT_REPORT
from wsi_idc.core.text import count, shorten_list


@click.command()
@click.argument("maps", nargs=-1, type=PATH)
@with_default("--out", type=PATH, default=DEFAULT_REPORT, help="Folder of the pages.")
@threshold_option
@exclude_flagged_option
@click.option(
    "--single-file",
    is_flag=True,
    help="Make pages that can be sent one by one: each contains the code that all pages share.",
)
@config_option
@output_options
def report(
    maps: tuple[Path, ...],
    out: Path,
    threshold: float | None,
    exclude_flagged: bool,
    single_file: bool,
    as_json: bool,
) -> None:
    """Make a report of MAPS, with one page per patient or slide.

    A browser shows the pages without a server or a network. A page shows the tissue and layers over
    the tissue, and a slider changes the threshold. A page whose map has not changed is kept.
    A page has a link to the evaluation of its model in runs/ or eval/, and the evaluation has links
    to the pages. index.html shows all patients as cards or as a table. If a patient has several
    slides, PATIENT.html lists them, and PATIENT/SLIDE.html shows a slide. The command also writes a
    table of the maps as cohort.csv and as cohort.h5, and a table of the patients as patients.csv.
    cohort.h5 has a link to each map.

    MAPS are map files, or folders of map files. Without MAPS, the report has every map in maps/,
    and the table is written into maps/. With MAPS, --threshold or --exclude-flagged, the table is
    written into the folder of the report. Pages of other maps in this folder are kept, and the
    command names them.

    \b
    Examples:
      wsi-idc report
      wsi-idc report maps/10253.h5 maps/10253.h5 --out two
    """
    paths = find_maps(maps)
    from wsi_idc.report.report import build_report

    # Replace the table in maps/ only if the report has all maps, with their own settings.
    is_own = not maps and threshold is None and not exclude_flagged
    result = build_report(
        paths,
        out,
        tables=DEFAULT_MAPS if is_own else out,
        threshold=threshold,
        exclude_flagged=exclude_flagged,
        single_file=single_file,
    )
    failed = {str(path): reason for path, reason in result.failed.items()}
    num_patients = len({name.partition("/")[0] for name in result.pages})
    lines = [
        *map(str, result.pages.values()),
        f"{result.csv}, {result.hdf5}, {result.patients}: {count(num_patients, 'patient')}",
        f"open {result.index}",
    ]
    echo_result({**vars(result), "failed": failed}, lines, as_json=as_json)
    for reason in failed.values() if not as_json else ():
        echo_note(f"not in the report: {reason}")
    if result.stale:
        pages = count(len(result.stale), "page of a map that is", "pages of maps that are")
        names = shorten_list(result.stale)
        echo_note(f"kept {pages} not in this report; remove the outdated ones: {names}")
    raise_if_any(failed, len(paths), "maps are not in the report")
