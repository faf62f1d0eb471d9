"""``wsi-idc job``, ``submit`` and ``status``: run a job file on this machine or on SLURM."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from wsi_idc.cli.compare import compare
from wsi_idc.cli.config_file import option_key
from wsi_idc.cli.eval import eval_
from wsi_idc.cli.explore import explore
from wsi_idc.cli.export import export
from wsi_idc.cli.map import map_
from wsi_idc.cli.options import PATH, is_given, json_option, with_default
from wsi_idc.cli.output import (
    echo,
    echo_note,
    echo_result,
    echo_table,
    raise_if_any,
    table_lines,
)
from wsi_idc.cli.prepare import prepare
from wsi_idc.cli.render import render
from wsi_idc.cli.report import report
from wsi_idc.cli.search import search
from wsi_idc.cli.train import train
from wsi_idc.core.errors import JobError, StoppedError, WsiIdcError
from wsi_idc.core.files import write_text
from wsi_idc.core.toml_file import load_toml
from wsi_idc.jobs import slurm
from wsi_idc.jobs.job import CommandSpec, Job, read_job

logger = logging.getLogger(__name__)

COMMANDS: Mapping[str, click.Command] = {
    str(command.name): command
    for command in (prepare, explore, train, search, eval_, compare, map_, render, export, report)
}
# A job file must not contain these options: the user chooses them for each call.
NOT_IN_A_FILE = frozenset(
    {
        *("device", "num_workers", "overwrite", "log_to"),
        *("as_json", "verbose", "quiet", "dry_run", "config"),
    }
)
_PASS_FLAGS = {"ignore_unknown_options": True}


@click.command(context_settings=_PASS_FLAGS)
@click.argument("job", type=PATH)
@click.option("--task", type=int, help="Run only the task with this number; the first is 1.")
@click.option("--count", is_flag=True, help="Print the number of tasks and run nothing.")
@click.option("--dry-run", is_flag=True, help="Print the command of each task and run nothing.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def job(job: Path, task: int | None, count: bool, dry_run: bool, flags: tuple[str, ...]) -> None:
    """Run a job file, or one of its tasks.

    JOB is a TOML file that names a command and its settings. The job files in jobs/ explain every
    key. Without --task, all tasks run one after the other. Finished work is skipped. FLAGS are
    added to the command of each task: for example --device, --overwrite, or a setting that replaces
    the same setting in JOB.

    \b
    Examples:
      wsi-idc job jobs/smoke.toml
      wsi-idc job jobs/cv5.toml --task 2 --device cuda:1
      wsi-idc job jobs/map_all.toml --dry-run
    """
    opened = open_job(job, flags)
    if count:
        echo(len(opened.tasks))
        return
    tasks = opened.tasks if task is None else [opened.task(task)]
    if dry_run:
        for call in tasks:
            echo(call.command_line())
        return
    if task is None and opened.single_call is not None:
        tasks = [opened.single_call]
    num_tasks, failed = len(tasks), []
    if num_tasks > 1 and "--json" in tasks[0].passthrough_args:
        raise click.UsageError("--json needs one task; give --task, or use wsi-idc status --json.")
    for number, call in enumerate(tasks, start=1):
        if num_tasks > 1:
            echo_note(f"task {number} of {num_tasks}: {call.command_line()}")
        try:
            if unfinished := call.unfinished_runs():
                logger.warning("unfinished runs are left out: %s", ", ".join(unfinished))
            words, name = call.arguments()[1:], f"wsi-idc {call.command}"
            COMMANDS[call.command].main(words, prog_name=name, standalone_mode=False)
        except WsiIdcError as error:
            if num_tasks == 1 or isinstance(error, StoppedError):
                raise
            failed.append(str(number))
            echo_note(f"task {number} failed: {error}")
    raise_if_any(failed, num_tasks, f"tasks failed: {', '.join(failed)}")


def open_job(path: Path, flags: Sequence[str]) -> Job:
    """Read the job file ``path``, add ``flags``, and check the command line of every task."""
    if str(path).startswith("-"):
        raise click.UsageError("give JOB first, then flags for its command.")
    command = COMMANDS.get(str(load_toml(path).get("command")))
    overrides, extra = _parse_flags(command, flags, path) if command else ({}, [])
    specs = {name: command_spec(one_command) for name, one_command in COMMANDS.items()}
    return read_job(path, specs, overrides=overrides, passthrough_args=extra)


def command_spec(command: click.Command) -> CommandSpec:
    """Return the options of ``command`` that a job file may set."""

    def parse(words: Sequence[str]) -> dict[str, Any]:
        try:
            params = command.make_context(f"wsi-idc {command.name}", list(words)).params
        except click.ClickException as error:
            raise JobError(error.format_message()) from None
        return {option_key(param): params.get(str(param.name)) for param in command.params}

    params = {
        option_key(param): param for param in command.params if param.name not in NOT_IN_A_FILE
    }
    options = {key: param for key, param in params.items() if isinstance(param, click.Option)}
    return CommandSpec(
        options={key: _option(param) if key in options else "" for key, param in params.items()},
        flags={key for key, option in options.items() if option.is_flag},
        lists={key for key, param in params.items() if param.multiple or param.nargs == -1},
        parse=parse,
    )


def _parse_flags(
    command: click.Command, flags: Sequence[str], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Parse ``flags``.

    Returns:
        A dict of the flags that a job file can also set, and a list with the words of all other
        flags.
    """
    # The job file sets the required arguments. Click needs any value for them: give ``path``.
    required = [p for p in command.params if isinstance(p, click.Argument) and p.required]
    words = [*flags, *[str(path)] * len(required)]
    ctx = command.make_context(f"wsi-idc job JOB (its {command.name})", words)
    overrides: dict[str, Any] = {}
    extra: list[str] = []
    given = [p for p in command.params if is_given(ctx, str(p.name)) and p not in required]
    for param in given:
        value = ctx.params[str(param.name)]
        if isinstance(value, Path):
            value = str(value)
        if param.name not in NOT_IN_A_FILE:
            overrides[option_key(param)] = (
                list(map(str, value)) if isinstance(value, tuple) else value
            )
        elif isinstance(param, click.Option) and (param.is_flag or param.count):
            extra += [_option(param)] * int(value)
        else:
            extra += [_option(param), str(value)]
    return overrides, extra


def _option(param: click.Parameter) -> str:
    return max(param.opts, key=len)


@click.command(context_settings=_PASS_FLAGS)
@click.argument("job", type=PATH)
@json_option
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def status(job: Path, as_json: bool, flags: tuple[str, ...]) -> None:
    """Show the progress of the tasks of a job.

    The command reads the progress from the files of each task, on any machine with access to these
    files. With SLURM the command also shows the entries of the job in the queue. Give the same
    FLAGS as for wsi-idc job or wsi-idc submit.

    \b
    Examples:
      wsi-idc status jobs/train_all_models.toml
      wsi-idc status jobs/map_all.toml --json
    """
    from wsi_idc.jobs.status import FINISHED, status_of

    opened = open_job(job, flags)
    rows, queue = status_of(opened), slurm.queue_of(opened)
    record = {"job": opened.name, "command": opened.command, "tasks": [vars(row) for row in rows]}
    width = max(len(row.out) for row in rows)
    lines = [
        f"task {row.number:<3} {row.out:<{width}}  {row.state:<11}  {row.detail}".rstrip()
        for row in rows
    ]
    lines += [f"in the queue: {entry}" for entry in queue]
    lines.append(f"{sum(row.state == FINISHED for row in rows)} of {len(rows)} finished")
    echo_result({**record, "queue": queue}, lines, as_json=as_json)


@click.command(context_settings=_PASS_FLAGS)
@click.argument("job", type=PATH)
@click.option(
    "--on",
    "where",
    type=click.Choice(["slurm", "local"]),
    help="Run on SLURM or on this machine.  [default: slurm if sbatch is installed, else local]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print where the job would run, and the script or the commands; submit nothing.",
)
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    help="GPUs per node.  [default: 1 if the command runs a network, else 0]",
)
@with_default("--nodes", type=click.IntRange(min=1), default=1)
@with_default("--cpus", type=click.IntRange(min=1), default=4, help="Cores per process.")
@with_default("--memory", default="6G", help="Memory per node.")
@with_default(
    "--time", default="04:00:00", help="Time limit; SLURM requeues a job that reaches this limit."
)
@click.option("--partition", default="", help="Partition.  [default: as in slurm/site.env]")
@click.option(
    "--account", default="", help="Account that pays for the job.  [default: as in slurm/site.env]"
)
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
    """Submit a job to SLURM, or run it in the background here.

    On SLURM the tasks of the job are one array job. SLURM sends each task a signal two minutes
    before the time limit: the task saves its work, is requeued and continues later. If --gpus or
    --nodes asks for several GPUs, each training uses all of them. FLAGS are added to the command of
    each task. The SLURM script reads slurm/site.env first, if this file exists.

    \b
    Examples:
      wsi-idc submit jobs/train_all_models.toml --time 12:00:00 --partition gpu
      wsi-idc submit jobs/cv5.toml --dry-run
      wsi-idc submit jobs/smoke.toml --on local
    """
    opened = open_job(job, flags)
    given = [name for name in resources if is_given(ctx, name)]
    if (where or ("slurm" if shutil.which("sbatch") else "local")) == "local":
        if given:
            names = ", ".join(f"--{'sbatch' if name == 'more' else name}" for name in given)
            echo_note(f"these flags have an effect only on SLURM: {names}")
        log = slurm.LOGS / f"{opened.name}.out"
        if dry_run:
            reason = ", because sbatch is not installed; --on slurm shows the script for SLURM"
            for task in [opened.single_call] if opened.single_call else opened.tasks:
                echo(task.command_line())
            place = f"this machine, in the background{'' if where else reason}"
            _echo_notes([("where", place), ("log", log)])
            return
        process = _start_here(["job", str(job), *flags], log)
        rows = [
            ("started", f"{opened.name} in the background, process {process}"),
            ("log", log),
            ("stop", f"kill {process}  (work is saved; the same command continues it)"),
        ]
    else:
        text = slurm.sbatch_text(opened, flags, **resources)
        script = slurm.LOGS / f"{opened.name}.sbatch"
        # The command line of sbatch overrides site.env, and site.env overrides the script.
        sbatch = {"memory": "mem", "time": "time", "partition": "partition", "account": "account"}
        words = [f"--{sbatch[name]}={resources[name]}" for name in given if name in sbatch]
        words += resources["more"]
        if dry_run:
            command = shlex.join(["sbatch", *words, str(script)])
            click.echo(text, nl=False)
            _echo_notes([*_slurm_rows(opened, given, resources), ("command", command)])
            return
        if not shutil.which("sbatch"):
            raise JobError("sbatch is not installed; submit where SLURM runs, or give --on local")
        write_text(script, text)
        number = slurm.submit(script, words)
        tasks = f", {len(opened.tasks)} tasks" if len(opened.tasks) > 1 else ""
        rows = [
            ("submitted", f"{opened.name} as job {number}{tasks}"),
            ("script", script),
            ("logs", slurm.LOGS / f"{opened.name}-{number}*.out"),
        ]
    echo_table([*rows, ("next", shlex.join(["wsi-idc", "status", str(job), *flags]))])


def _echo_notes(rows: Sequence[tuple[str, object]]) -> None:
    """Write a table to standard error; the script or the commands are on standard output."""
    for line in table_lines(rows):
        echo_note(line)


def _slurm_rows(
    opened: Job, given: Sequence[str], resources: Mapping[str, Any]
) -> list[tuple[str, object]]:
    """Return rows of a table: partition, time limit and log file of a job on SLURM."""
    site = slurm.site_settings()
    partition = resources["partition"] or site.get("SBATCH_PARTITION")
    time = resources["time"] if "time" in given else site.get("SBATCH_TIMELIMIT", resources["time"])
    where = f"partition {partition}" if partition else "the default partition of SLURM"
    if not shutil.which("sbatch"):
        where += "; sbatch is not installed here"
    num_tasks = len(opened.tasks)
    return [
        ("where", f"SLURM, {where}"),
        ("time", f"at most {time}" + (f" for each of {num_tasks} tasks" if num_tasks > 1 else "")),
        ("log", slurm.LOGS / f"{opened.name}-JOB{'_TASK' if num_tasks > 1 else ''}.out"),
    ]


def _start_here(arguments: list[str], log: Path) -> int:
    """Start a command in the background with its output in ``log``; return its process id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # A process in its own session continues when the terminal is closed.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "wsi_idc", *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
