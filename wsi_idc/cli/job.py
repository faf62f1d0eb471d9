"""``wsi-idc job``."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.compare import compare
from wsi_idc.cli.eval import eval_
from wsi_idc.cli.explore import explore
from wsi_idc.cli.export import export
from wsi_idc.cli.map import map_
from wsi_idc.cli.options import PATH, is_given
from wsi_idc.cli.output import echo, one_line
from wsi_idc.cli.prepare import prepare
from wsi_idc.cli.render import render
from wsi_idc.cli.report import report
from wsi_idc.cli.search import search
from wsi_idc.cli.train import train
from wsi_idc.core.errors import JobError, StoppedError, WsiIdcError

if TYPE_CHECKING:
    from wsi_idc.jobs.job import Job, OptionSpec, Task

logger = logging.getLogger(__name__)

COMMANDS: Mapping[str, click.Command] = {
    str(command.name): command
    for command in (
        prepare,
        explore,
        train,
        search,
        eval_,
        compare,
        map_,
        render,
        export,
        report,
    )
}
# How and where to compute, and what to show: given when the job is run, not in its file.
NOT_IN_A_FILE = frozenset(
    {"device", "num_workers", "overwrite", "as_json", "verbose", "quiet", "dry_run"}
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("job", type=PATH)
@click.option("--task", type=int, help="Only the task of this number, from 1.")
@click.option("--count", is_flag=True, help="Say how many tasks the job has, and do nothing.")
@click.option("--dry-run", is_flag=True, help="Say the command of each task, and do nothing.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def job(job: Path, task: int | None, count: bool, dry_run: bool, flags: tuple[str, ...]) -> None:
    """Do what a job file asks for, or one task of it.

    JOB is a TOML file that names a command and its settings; those in jobs/ have every key, with a
    comment. Without --task all tasks are done, one after the other; what is finished already is
    passed over. FLAGS go to the command of each task, such as --device, --overwrite, or a setting
    that overrides the file's.

    \b
    Examples:
      wsi-idc job jobs/smoke.toml
      wsi-idc job jobs/cv5.toml --task 2 --device cuda:1
      wsi-idc job jobs/map_all.toml --dry-run
    """
    read = open_job(job, flags)
    if count:
        echo(str(len(read.tasks)))
        return
    if dry_run:
        for one in [read.task(task)] if task is not None else read.tasks:
            echo(shlex.join(["wsi-idc", *one.arguments()]))
        return
    if task is not None:
        _run(read.task(task))
    elif read.whole is not None:
        _run(read.whole)
    elif len(read.tasks) > 1 and "--json" in read.tasks[0].extra:
        raise click.UsageError("--json is for one task; give --task, or ask wsi-idc status --json.")
    else:
        _run_all(read)


def open_job(path: Path, flags: Sequence[str]) -> "Job":
    """Read a job file and what is given beside it, and check the command of every task.

    Raises:
        JobError: The file cannot be read, or a command would refuse its settings.
        click.UsageError: A flag is none of the command's.
    """
    from wsi_idc.core.toml_file import load_toml
    from wsi_idc.jobs.job import read_job

    if str(path).startswith("-"):
        raise click.UsageError("give JOB first, then flags for its command.")
    known = {name: _flags(command) for name, command in COMMANDS.items()}
    name = str(load_toml(path).get("command"))
    given, extra = _given(COMMANDS[name], flags, path) if name in known else ({}, [])
    read = read_job(path, known, given=given, extra=extra)
    for task in [*read.tasks, read.whole]:
        if task is not None:
            _check(path, task)
    return read


def _check(path: Path, task: "Task") -> None:
    """Let the command itself look at its settings, ahead of the first task."""
    try:
        COMMANDS[task.command].make_context(f"wsi-idc {task.command}", task.arguments()[1:])
    except click.ClickException as error:
        raise JobError(f"{path}: {error.format_message()}") from None


def _flags(command: click.Command) -> "dict[str, OptionSpec]":
    """Return what a task may set of a command, by key."""
    from wsi_idc.jobs.job import OptionSpec

    kinds = {"integer": int, "float": float, "boolean": bool}
    return {
        _key(param): OptionSpec(
            "" if isinstance(param, click.Argument) else _option(param),
            kinds.get(param.type.name.removesuffix(" range"), str),
            param.multiple or param.nargs == -1,
        )
        for param in command.params
        if param.name not in NOT_IN_A_FILE
    }


def _given(
    command: click.Command, flags: Sequence[str], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return settings that are given as flags, by key, and the other flags as they are."""
    # What a command line must have, the file has.
    required = [p for p in command.params if isinstance(p, click.Argument) and p.required]
    needed = [str(path)] * len(required)
    ctx = command.make_context(f"wsi-idc job JOB (its {command.name})", [*flags, *needed])
    given: dict[str, Any] = {}
    extra: list[str] = []
    for param in command.params:
        name = str(param.name)
        value = ctx.params.get(name)
        if not is_given(ctx, name) or param in required:
            continue
        if name not in NOT_IN_A_FILE:
            given[_key(param)] = _plain(value)
        elif isinstance(value, bool):
            extra.append(_option(param))
        elif isinstance(param, click.Option) and param.count:
            extra += [_option(param)] * int(value or 0)
        else:
            extra += [_option(param), str(value)]
    return given, extra


def _option(param: click.Parameter) -> str:
    return max(param.opts, key=len)


def _key(param: click.Parameter) -> str:
    if isinstance(param, click.Argument):
        return str(param.name)
    return _option(param).lstrip("-").replace("-", "_")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _run(task: "Task") -> None:
    if left_out := task.unfinished_runs():
        logger.warning("not finished, so left out: %s", ", ".join(left_out))
    COMMANDS[task.command].main(
        task.arguments()[1:], prog_name=f"wsi-idc {task.command}", standalone_mode=False
    )


def _run_all(read: "Job") -> None:
    """Run every task; one that fails is listed at the end, and the others are run all the same."""
    count = len(read.tasks)
    failed = []
    for number, task in enumerate(read.tasks, start=1):
        if count > 1:
            line = shlex.join(["wsi-idc", *task.arguments()])
            click.echo(one_line(f"task {number} of {count}: {line}"), err=True)
        try:
            _run(task)
        except StoppedError:
            raise
        except WsiIdcError as error:
            if count == 1:
                raise
            failed.append(number)
            click.echo(one_line(f"task {number} failed: {error}"), err=True)
    if failed:
        numbers = ", ".join(map(str, failed))
        raise JobError(f"{len(failed)} of {count} tasks failed: {numbers}; the reasons are above")
