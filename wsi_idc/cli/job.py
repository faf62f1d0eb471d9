"""``wsi-idc job``."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, data_option, json_option
from wsi_idc.cli.search import search
from wsi_idc.cli.train import train
from wsi_idc.config import TrainConfig


@click.command()
@click.argument("job", type=PATH)
@data_option
@click.option("--out", type=PATH, help="Folder of the run or search.  [default: below runs/]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@json_option
@click.option("-v", "--verbose", count=True, help="Say more on standard error.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")
@click.pass_context
def job(ctx: click.Context, job: Path, **options: object) -> None:
    """Do what a job file asks for.

    JOB is a TOML file with command = "train" or "search", such as the best.toml that a search
    leaves.

    \b
    Examples:
      wsi-idc job jobs/search.toml
      wsi-idc job runs/search/best.toml
    """
    from wsi_idc.hpc.jobs import read_job

    settings = read_job(job).settings
    if isinstance(settings, TrainConfig):
        ctx.invoke(train, **settings.as_dict(), **options)
    else:
        ctx.invoke(search, job=job, **options)
