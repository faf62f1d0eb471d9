"""``wsi-idc search``: search for hyper-parameters."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.options import PATH, data_option, device_option, output_options
from wsi_idc.cli.output import echo_note, echo_result, hanging_lines, raise_if_any, table_lines
from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.search.config import format_point, read_search

if TYPE_CHECKING:
    from wsi_idc.search.results import SearchResult


@click.command()
@click.argument("job", type=PATH)
@data_option
@click.option("--out", type=PATH, help="Folder of the search.  [default: runs/NAME]")
@device_option
@config_option
@output_options
def search(job: Path, data: Path | None, out: Path | None, device: str, as_json: bool) -> None:
    """Train with many settings and rank the results.

    JOB is a TOML file, such as jobs/search.toml. It contains the name of the search (NAME), the
    fixed settings, the values to try, and the sampler: grid, random or tpe. Each trial is a run.
    The same command can run several times at once, also on several machines with a common disk; the
    processes divide the trials. After a stop or a kill, the same command resumes the search.

    \b
    Example:
      wsi-idc search jobs/search.toml
    """
    spec = read_search(job)

    from wsi_idc.data.open_data import open_data
    from wsi_idc.runtime.signals import stop_requests

    pack = open_data(data)

    from wsi_idc.search.search import search as run_search

    folder = out or DEFAULT_RUNS / spec.name
    with stop_requests() as stop:
        result = run_search(spec, pack, folder=folder, device=device, stop=stop)
    best = result.best
    record = {
        "search": result.folder,
        "metric": result.spec.metric,
        "running_elsewhere": len(result.having("running")),
        "trials": result.rows(),
        "best": best
        and {"number": best.number, "checkpoint": result.checkpoint, "config": best.config},
    }
    echo_result(record, _search_lines(result), as_json=as_json)
    failed = result.having("failed")
    for trial in failed:
        echo_note(f"trial {trial.number} failed: {trial.reason}")
    numbers = ", ".join(str(trial.number) for trial in failed)
    raise_if_any(failed, len(result.trials), f"trials failed: {numbers}")


def _search_lines(result: "SearchResult") -> Iterator[str]:
    from wsi_idc.search.results import BEST_JOB, FIGURE, TABLE

    rows, metric = result.rows(), result.spec.metric
    columns = {"number": "trial", "state": "state", metric: metric.replace("_", " ")}
    columns |= {"auc": "AUC", "f1": "F1", "threshold": "threshold", "best_epoch": "epoch"}
    columns["seconds"] = "seconds"
    table = [[*columns.values()], *([_cell(name, row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for cells in table
    ]
    yield lines[0]
    for line, trial in zip(lines[1:], result.trials, strict=True):
        yield line
        yield from hanging_lines(" " * (widths[0] + 2), format_point(trial.point))
    yield "F1 is at the threshold of the trial; trials.csv has the other metrics"
    if running := len(result.having("running")):
        yield (
            f"other processes still run {running} of {len(rows)} trials; the last process to end "
            "writes the complete table"
        )
    if result.best is None:
        yield f"no trial is complete; see the table {result.folder / TABLE}"
        return
    yield from table_lines(
        [
            ("best", f"trial {result.best.number}; its job file is {result.folder / BEST_JOB}"),
            ("table", result.folder / TABLE),
            ("figure", result.folder / FIGURE),
            ("checkpoint", result.checkpoint),
            ("next", f"wsi-idc eval --checkpoint {result.checkpoint}"),
        ]
    )


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if name == "seconds" else f"{value:.4f}"
    return str(value)
