"""Read job files: TOML files that describe computations independently of the machine.

The key ``command`` is the name of a command. ``name`` is the name of the job; the default is the
name of the file without its suffix. ``[config]`` has options of the command, with underscores in
their names. ``[axes]`` has lists of values; each combination of their values is a task. ``tasks``
is the number of tasks among which the patients of a ``map`` or the trials of a ``search`` are
divided. All values become a command line. The command itself parses and checks this command line.
"""

import glob
import itertools
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.errors import JobError, RunError
from wsi_idc.core.toml_file import (
    MAX_TASKS,
    check_keys,
    command_and_name,
    load_toml,
    num_tasks,
    table,
)
from wsi_idc.search.config import SEARCH, search_spec, train_types
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import Run

TRAIN, MAP = "train", "map"
# Keys for the inputs of `map`. If a flag of the user sets one of these keys, all of these keys in
# the job file are ignored.
_MAP_INPUTS = {"all", "patient", "patients_file", "slide", "files", "manifest"}
_MAX_SLUG = 60


@dataclass(frozen=True)
class OptionSpec:
    """An option or argument of a command.

    Attributes:
        option: Name on the command line, such as "--out"; empty for an argument.
        is_flag: Whether the option has no value.
        is_list: Whether the option or argument may be repeated.
    """

    option: str
    is_flag: bool = False
    is_list: bool = False


@dataclass(frozen=True)
class CommandSpec:
    """A command that a job can run.

    Attributes:
        options: Key in the job file to option or argument.
        parse: Function that parses a command line into a value for each key, or raises JobError.
    """

    options: Mapping[str, OptionSpec]
    parse: Callable[[Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One task of a job: a call of a command.

    Attributes:
        command: Name of the command.
        spec: Options and parser of the command.
        settings: Key to value; a flag of the user replaces the value in the job file.
        passthrough_args: Arguments that are passed to the command unchanged.
        values: Key to value after the command line is parsed; defaults are included.
    """

    command: str
    spec: CommandSpec
    settings: Mapping[str, Any]
    passthrough_args: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.settings.items():
            _check_value(key, value, self.spec.options[key])
        values = self.spec.parse(self.arguments()[1:])
        for key, value in self.settings.items():
            if isinstance(value, str) and isinstance(values[key], int | float):
                raise JobError(f"{key} must be a number, not {value!r}")
        object.__setattr__(self, "values", values)

    def arguments(self) -> list[str]:
        """Return the command line without ``wsi-idc``, as a list; file patterns are expanded."""
        words: list[str] = []
        for key, value in self.settings.items():
            option = self.spec.options[key]
            if option.is_flag:
                words += [option.option] if value else []
            elif option.option:
                names = (name for item in _items(value) for name in expand_pattern(item))
                words += [word for name in names for word in (option.option, name)]
        arguments = self.plain_arguments()
        # The command treats every word after "--" as an argument, never as an option.
        end = ["--", *arguments] if arguments else []
        return [self.command, *words, *self.passthrough_args, *end]

    def command_line(self) -> str:
        """Return the complete command line, quoted for a shell."""
        return shlex.join(["wsi-idc", *self.arguments()])

    def plain_arguments(self) -> list[str]:
        """Return the positional arguments in the command's order; file patterns are expanded."""
        arguments: list[str] = []
        for key, option in self.spec.options.items():
            if not option.option and key in self.settings:
                for item in _items(self.settings[key]):
                    names = expand_pattern(item)
                    arguments += _finished(names) if key == "runs" else names
        return arguments

    def unfinished_runs(self) -> list[str]:
        """Return the runs that ``plain_arguments`` omits because these runs are not finished."""
        lists = map(expand_pattern, _items(self.settings.get("runs", ())))
        return sorted({run for runs in lists for run in set(runs) - set(_finished(runs))})


@dataclass(frozen=True)
class Job:
    """Job that was read from a job file.

    Attributes:
        path: Path of the job file.
        command: Name of the command that all tasks run.
        name: Name of the job.
        tasks: Tasks of the job; the first task has number 1.
        single_call: Call that does the work of all tasks; None if no such call exists.
    """

    path: Path
    command: str
    name: str
    tasks: Sequence[Task]
    single_call: Task | None = None

    def task(self, number: int) -> Task:
        """Return the task with the given number; the first task has number 1."""
        count = len(self.tasks)
        if not 1 <= number <= count:
            have = "one task, 1" if count == 1 else f"{count} tasks, 1 to {count}"
            raise JobError(f"{self.path}: no task {number}; the job has {have}")
        return self.tasks[number - 1]


def read_job(
    path: Path,
    commands: Mapping[str, CommandSpec],
    *,
    overrides: Mapping[str, Any] | None = None,
    passthrough_args: Sequence[str] = (),
) -> Job:
    """Read and check a job file.

    Args:
        path: Path of the job file.
        commands: Name to command, for all commands that a job can run.
        overrides: Settings that replace settings of the job file. A training with overrides has its
            own run folder, whose name includes the overrides.
        passthrough_args: Arguments that are passed to every task unchanged, such as the device.

    Raises:
        JobError: The file cannot be read, or its content is not valid.
    """
    content, overrides, extra = load_toml(path), overrides or {}, tuple(passthrough_args)
    try:
        command, name = command_and_name(content, path, commands)
        spec, num_parts = commands[command], num_tasks(content)
        if command == SEARCH:
            search_spec(name, content)
            settings = {"job": str(path), "out": str(DEFAULT_RUNS / name), **overrides}
            single = Task(SEARCH, spec, settings, extra)
            return Job(path, SEARCH, name, [single] * num_parts, single_call=single)
        check_keys("the file", content, ["command", "name", "tasks", "config", "axes"])
        if num_parts > 1 and command != MAP:
            raise JobError("tasks is for a search, or for a map without [axes]; leave it out")
        fixed, points = _read_settings(content, command, spec, overrides)
        if command == TRAIN:
            return Job(path, TRAIN, name, _train_tasks(name, spec, fixed, points, overrides, extra))
        single = Task(command, spec, {**fixed, **overrides}, extra)
        if num_parts == 1:
            return Job(path, command, name, [single])
        if "shard" in single.settings:
            raise JobError("shard is one of the parts that tasks makes; leave one of the two out")
        shards = [f"{number}/{num_parts}" for number in range(1, num_parts + 1)]
        parts = [Task(MAP, spec, {**single.settings, "shard": shard}, extra) for shard in shards]
        return Job(path, MAP, name, parts, single_call=single)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def _read_settings(
    content: Mapping[str, Any], command: str, spec: CommandSpec, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the [config] settings, and a point (a combination of [axes] values) per task."""
    fixed, axes = table(content, "config"), table(content, "axes")
    check_keys("[config]", fixed, spec.options)
    check_keys("[axes]", axes, spec.options)
    if command == MAP and _MAP_INPUTS & overrides.keys():
        fixed = {key: value for key, value in fixed.items() if key not in _MAP_INPUTS}
    for key, axis in axes.items():
        if not isinstance(axis, list) or not axis:
            raise JobError(f"axis {key} must be a list with a value for each task, not {axis!r}")
        if len(axis) > MAX_TASKS:
            raise JobError(f"axis {key} has {len(axis)} values; at most {MAX_TASKS}")
        if len(set(map(repr, axis))) < len(axis):
            raise JobError(f"axis {key} has a value twice")
        if key in fixed:
            raise JobError(f"{key} is both in [config] and in [axes]; choose one")
        if key in overrides:
            raise JobError(f"{key} is an axis of this job, so it cannot be set for all tasks")
    if axes and command != TRAIN:
        raise JobError(f"[axes] is for train and search; tasks = N splits a map, {command} has one")
    num_points = math.prod(map(len, axes.values()))
    if num_points > MAX_TASKS:  # checked first: a list of all points may not fit into memory
        raise JobError(f"{num_points} tasks; at most {MAX_TASKS}, so shorten an axis")
    return fixed, [
        dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())
    ]


def _train_tasks(
    name: str,
    spec: CommandSpec,
    fixed: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any],
    passthrough_args: tuple[str, ...],
) -> list[Task]:
    """Check the settings of each point, and return a training task with a run folder per point."""
    fields, tasks, slugs = train_types(), [], []
    own = {key: value for key, value in overrides.items() if fixed.get(key) != value}
    for point in points:
        try:
            task = Task(TRAIN, spec, {**fixed, **point, **overrides}, passthrough_args)
            TrainConfig(**{key: task.values[key] for key in fields})
        except (JobError, RunError) as error:
            where = ", ".join(f"{key} {value}" for key, value in {**point, **own}.items())
            raise JobError(f"at {where}: {error}" if where else str(error)) from None
        words = [str(task.values[key]) for key in point if key in fields]
        words += [f"{key} {task.values[key]}" for key in own if key in fields]
        slugs.append(re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:_MAX_SLUG])
        tasks.append(task)
    if any("out" in task.settings for task in tasks):
        if len(tasks) > 1:
            raise JobError("out is one folder, and each task needs its own; leave it out")
        return tasks
    if len(set(slugs)) < len(slugs):
        slugs = [f"task-{number}" for number in range(1, len(slugs) + 1)]
    outs = [str(DEFAULT_RUNS / (f"{name}-{slug}" if slug else name)) for slug in slugs]
    return [
        Task(TRAIN, spec, {**task.settings, "out": out}, passthrough_args)
        for task, out in zip(tasks, outs, strict=True)
    ]


def _check_value(key: str, value: Any, option: OptionSpec) -> None:
    """Check the type of a value in a job file; the command checks the value itself later."""
    if option.is_list and not isinstance(value, list | tuple):
        raise JobError(f"{key} must be a list, not {value!r}")
    for item in value if option.is_list else [value]:
        if option.is_flag != isinstance(item, bool) or not isinstance(item, str | int | float):
            kind = "true or false" if option.is_flag else "a number or a text"
            raise JobError(f"{key} must be {kind}, not {item!r}")
        if isinstance(item, str) and not item.isprintable():
            raise JobError(f"{key} must be one line of printable text, not {item!r}")


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _finished(paths: list[str]) -> list[str]:
    """Return the paths without unfinished runs, or all paths if no run is finished."""
    finished = [path for path in paths if not Path(path).is_dir() or Run(Path(path)).is_finished()]
    return finished if len(paths) > 1 and finished else paths


def expand_pattern(value: Any) -> list[str]:
    """Return the files that match a pattern, or the text itself if no file matches the text."""
    text = str(value)
    if not any(sign in text for sign in "*?"):
        return [text]
    return sorted(glob.glob(text)) or [text]  # noqa: PTH207 - expands relative and absolute paths
