"""``wsi-idc status``."""

from pathlib import Path

import click

from wsi_idc.cli.job import open_job
from wsi_idc.cli.options import PATH, json_option
from wsi_idc.cli.output import echo, echo_json


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("job", type=PATH)
@json_option
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def status(job: Path, as_json: bool, flags: tuple[str, ...]) -> None:
    """Say how far the tasks of a job are.

    Read from what they have left on the disk, wherever they ran; with SLURM also what of the job is
    in the queue. FLAGS are those that the job was run with.

    \b
    Examples:
      wsi-idc status jobs/train_all_models.toml
      wsi-idc status jobs/map_all.toml --json
    """
    from wsi_idc.jobs.slurm import queue_of
    from wsi_idc.jobs.status import FINISHED, status_of

    read = open_job(job, flags)
    rows, queue = status_of(read), queue_of(read)
    if as_json:
        tasks = [vars(row) for row in rows]
        echo_json({"job": read.name, "command": read.command, "tasks": tasks, "queue": queue})
        return
    width = max(len(row.out) for row in rows)
    for row in rows:
        echo(f"task {row.number:<3} {row.out:<{width}}  {row.state:<11}  {row.detail}".rstrip())
    for line in queue:
        echo(f"in the queue: {line}")
    finished = sum(row.state == FINISHED for row in rows)
    echo(f"{finished} of {len(rows)} finished")
