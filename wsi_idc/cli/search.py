"""``wsi-idc search``."""

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.options import PATH, data_option, device_option, json_option, logging_options
from wsi_idc.cli.output import echo, echo_json, echo_table, one_line
from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.errors import RunError

if TYPE_CHECKING:
    from wsi_idc.search.results import SearchResult


@click.command()
@click.argument("job", type=PATH)
@data_option
@click.option("--out", type=PATH, help="Folder of the search.  [default: runs/NAME]")
@device_option
@json_option
@logging_options
def search(job: Path, data: Path | None, out: Path | None, device: str, as_json: bool) -> None:
    """Train at many settings and rank them.

    JOB is a TOML file that names the fixed settings, the axes and the sampler: grid, random or tpe;
    see jobs/search.toml. NAME is its name. Each trial is a run of its own. The same command in
    several processes, also on several machines with one disk, shares the trials among them; stopped
    or killed, it goes on where it was.

    \b
    Example:
      wsi-idc search jobs/search.toml
    """
    from wsi_idc.data.open_data import open_data
    from wsi_idc.runtime.signals import stop_requests
    from wsi_idc.search.config import read_search
    from wsi_idc.search.search import search as run_search

    spec = read_search(job)
    pack = open_data(data)
    with stop_requests() as stop:
        result = run_search(
            spec, pack, folder=out or DEFAULT_RUNS / spec.name, device=device, stop=stop
        )
    if as_json:
        echo_json(_as_dict(result))
    else:
        _say_result(result)
    failed = result.having("failed")
    for trial in failed:
        click.echo(one_line(f"trial {trial.number} failed: {trial.reason}"), err=True)
    if failed:
        numbers = ", ".join(str(trial.number) for trial in failed)
        raise RunError(
            f"{len(failed)} of {len(result.trials)} trials failed: {numbers}; the reasons are above"
        )


def _as_dict(result: "SearchResult") -> dict[str, Any]:
    best = result.best
    return {
        "search": result.folder,
        "metric": result.spec.metric,
        "running_elsewhere": len(result.having("running")),
        "trials": result.rows(),
        "best": best
        and {"number": best.number, "checkpoint": result.checkpoint, "config": best.config},
    }


def _say_result(result: "SearchResult") -> None:
    from wsi_idc.search.results import BEST_JOB, FIGURE, TABLE

    rows, axes = result.rows(), result.spec.axes
    hidden = {"run", "reason"}
    table = [[name.replace("_", " ") for name in rows[0] if name not in hidden]]
    table += [[_cell(name, row[name], axes) for name in row if name not in hidden] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        echo("  ".join(cells))
    running = len(result.having("running"))
    if running:
        echo(
            f"{running} of {len(rows)} trials are still being run by other processes; the last to "
            "end writes the complete table"
        )
    if result.best is None:
        echo(f"no trial is complete; table in {result.folder / TABLE}")
        return
    echo_table(
        [
            ("best", f"trial {result.best.number}, as job file in {result.folder / BEST_JOB}"),
            ("table", result.folder / TABLE),
            ("figure", result.folder / FIGURE),
            ("checkpoint", result.checkpoint),
            ("next", f"wsi-idc eval --checkpoint {result.checkpoint}"),
        ]
    )


def _cell(name: str, value: object, axes: Container[str]) -> str:
    from wsi_idc.search.config import format_value

    if value is None:
        return "-"
    if isinstance(value, float) and name not in axes:
        return f"{value:.0f}" if name == "seconds" else f"{value:.4f}"
    return format_value(value)
