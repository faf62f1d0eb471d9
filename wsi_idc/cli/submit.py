"""``wsi-idc submit``."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.job import open_job
from wsi_idc.cli.options import PATH, is_given
from wsi_idc.cli.output import echo, echo_table
from wsi_idc.core.errors import JobError

if TYPE_CHECKING:
    from wsi_idc.jobs.job import Job


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("job", type=PATH)
@click.option(
    "--on",
    "where",
    type=click.Choice(["slurm", "local"]),
    help="[default: slurm where there is sbatch, else local]",
)
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and do nothing.")
@click.option("--gpus", type=click.IntRange(min=0), help="A node.  [default: 1, or 0 if unused]")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--cpus", type=click.IntRange(min=1), default=4, show_default=True, help="A process.")
@click.option("--memory", default="6G", show_default=True, help="A node.")
@click.option("--time", default="04:00:00", show_default=True, help="Before the job takes turns.")
@click.option("--partition", default="", help="[default: the site's]")
@click.option("--account", default="", help="[default: the site's]")
@click.option("--sbatch", "more", multiple=True, help="Another flag of sbatch, such as --qos=long.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def submit(
    ctx: click.Context,
    job: Path,
    where: str | None,
    dry_run: bool,
    flags: tuple[str, ...],
    **resources: Any,
) -> None:
    """Submit a job: its tasks as an array to SLURM, or into the background of this machine.

    Each task gets a signal two minutes before its time limit, saves, requeues itself and goes on.
    With several --gpus or --nodes one training runs on all of them. FLAGS go to the command of each
    task. slurm/site.env, where it is there, is read first.

    \b
    Examples:
      wsi-idc submit jobs/train_all_models.toml --time 12:00:00 --partition gpu
      wsi-idc submit jobs/cv5.toml --dry-run
      wsi-idc submit jobs/smoke.toml --on local
    """
    from wsi_idc.core.files import write_text
    from wsi_idc.jobs.slurm import LOGS, Resources, sbatch_text
    from wsi_idc.jobs.slurm import submit as hand_over

    read = open_job(job, flags)
    if (where or ("slurm" if shutil.which("sbatch") else "local")) == "local":
        if ignored := [name for name in resources if is_given(ctx, name)]:
            names = ", ".join(f"--{'sbatch' if name == 'more' else name}" for name in ignored)
            click.echo(f"for SLURM, so without effect here: {names}", err=True)
        _start_here(read, flags, dry_run=dry_run)
        return
    text = sbatch_text(read, Resources(**resources), flags)
    if dry_run:
        click.echo(text, nl=False)
        return
    if not shutil.which("sbatch"):
        raise JobError("no sbatch here; submit where there is SLURM, or give --on local")
    script = LOGS / f"{read.name}.sbatch"
    write_text(script, text)
    number = hand_over(script, _as_given(ctx))
    tasks = f", {len(read.tasks)} tasks" if len(read.tasks) > 1 else ""
    echo_table(
        [
            ("submitted", f"{read.name} as job {number}{tasks}"),
            ("script", script),
            ("logs", LOGS / f"{read.name}-{number}*.out"),
            ("next", _status(read, flags)),
        ]
    )


def _as_given(ctx: click.Context) -> list[str]:
    """Return as flags of sbatch what was asked for by name."""
    names = {"memory": "mem", "time": "time", "partition": "partition", "account": "account"}
    given = [name for name in names if is_given(ctx, name)]
    return [*(f"--{names[name]}={ctx.params[name]}" for name in given), *ctx.params["more"]]


def _status(read: "Job", flags: tuple[str, ...]) -> str:
    return shlex.join(["wsi-idc", "status", str(read.path), *flags])


def _start_here(read: "Job", flags: tuple[str, ...], *, dry_run: bool) -> None:
    """Start the job in the background, its log in a file."""
    from wsi_idc.jobs.slurm import LOGS

    if dry_run:
        for task in read.tasks if read.whole is None else [read.whole]:
            echo(shlex.join(["wsi-idc", *task.arguments()]))
        return
    log = LOGS / f"{read.name}.out"
    log.parent.mkdir(parents=True, exist_ok=True)
    # In a session of its own it outlives the terminal.
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "wsi_idc", "job", str(read.path), *flags],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    echo_table(
        [
            ("started", f"{read.name} in the background, process {process}"),
            ("log", log),
            ("stop", f"kill {process}  (it saves; the same command goes on)"),
            ("next", _status(read, flags)),
        ]
    )
