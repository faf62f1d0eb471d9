"""``wsi-idc job``."""

from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.options import PATH, json_option, logging_options, run_options
from wsi_idc.cli.search import search
from wsi_idc.cli.train import train
from wsi_idc.config import DEFAULT_RUNS, TrainConfig
from wsi_idc.errors import JobError


@click.command()
@click.argument("job", type=PATH)
@run_options
@click.option("--out", type=PATH, help="Folder of the run or search.  [default: runs/NAME]")
@json_option
@logging_options
@click.pass_context
def job(
    ctx: click.Context,
    job: Path,
    data: Path | None,
    device: str,
    out: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Do what a job file asks for.

    JOB is a TOML file with command = "train" or "search", such as the best.toml that a search
    leaves; NAME is the name in it, or the file's own. A search takes neither --micro-batch,
    --compile, --save-minutes nor --overwrite.

    \b
    Examples:
      wsi-idc job jobs/search.toml
      wsi-idc job runs/search/best.toml
    """
    from wsi_idc.hpc.jobs import read_job

    read = read_job(job)
    common: dict[str, Any] = {"data": data, "device": device, "as_json": as_json}
    if isinstance(read.settings, TrainConfig):
        config = read.settings.as_dict()
        _call(ctx, train, out=out or DEFAULT_RUNS / read.name, **common, **how, **config)
        return
    if how["micro_batch"] or how["compiled"] or how["overwrite"]:
        raise JobError(f"{job}: a search takes no --micro-batch, --compile or --overwrite")
    _call(ctx, search, job=job, out=out, **common)


def _call(ctx: click.Context, command: click.Command, **arguments: Any) -> None:
    """Call a command, as talkative as this one was asked to be."""
    quiet, verbose = ctx.params.get("quiet", False), ctx.params.get("verbose", 0)
    ctx.invoke(command, quiet=quiet, verbose=verbose, **arguments)
