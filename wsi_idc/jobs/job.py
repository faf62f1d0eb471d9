"""Read job files. A job file is a TOML file with a computation that can run on any machine.

The key ``command`` is the name of a command. ``name`` is the name of the job; the default is the
name of the file without its suffix. ``[config]`` sets options of the command; a key has underscores
instead of the hyphens of the option. ``[axes]`` sets options to lists of values; each combination
of values is one task. ``tasks`` is the number of tasks of a ``map`` or a ``search``; the patients
or the trials are divided among these tasks. The settings of a task become a command line. The
command itself parses and checks this command line.
"""

import glob
import itertools
import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from wsi_idc.core import toml_file
from wsi_idc.core.constants import DEFAULT_RUNS
from wsi_idc.core.errors import JobError, RunError
from wsi_idc.search.config import SEARCH, read_search, train_types
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import Run

TRAIN, MAP = "train", "map"
MAX_TASKS = 10_000
# Inputs of `map`. If the user sets one of these keys by a flag, the job file's inputs are ignored.
_MAP_INPUTS = {"all", "patient", "patients_file", "slide", "files", "manifest"}
_MAX_SLUG = 60


@dataclass(frozen=True)
class CommandSpec:
    """A command that a job can run; each key in the job file sets an option or an argument.

    Attributes:
        options: For each key, the name of the option, such as "--out". If the key sets an argument,
            the name is "".
        flags: Keys of the options that take no value.
        lists: Keys of the options and arguments that may be repeated.
        parse: Function that parses a command line. It returns a dict or raises JobError.
    """

    options: Mapping[str, str]
    flags: Collection[str]
    lists: Collection[str]
    parse: Callable[[Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One task of a job: a call of a command.

    Attributes:
        command: Name of the command.
        spec: Options and parser of the command.
        settings: Values by key, from the job file and from the flags of the command line; flags
            have priority.
        passthrough_args: Arguments that are passed to the command unchanged.
        values: Value of each key after the command line is parsed; defaults are included.
    """

    command: str
    spec: CommandSpec
    settings: Mapping[str, Any]
    passthrough_args: Sequence[str]
    values: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The command checks the values; this loop only checks the types that TOML distinguishes.
        for key, value in self.settings.items():
            is_list, is_flag = key in self.spec.lists, key in self.spec.flags
            if is_list and not isinstance(value, list):
                raise JobError(f"{key} must be a list, not {value!r}")
            for item in value if is_list else [value]:
                if is_flag != isinstance(item, bool) or not isinstance(item, str | int | float):
                    kind = "true or false" if is_flag else "a number or a text"
                    raise JobError(f"{key} must be {kind}, not {item!r}")
                if isinstance(item, str) and not item.isprintable():
                    raise JobError(f"{key} must be one line of printable text, not {item!r}")
        object.__setattr__(self, "values", self.spec.parse(self.arguments()[1:]))
        for key, value in self.settings.items():
            if isinstance(value, str) and isinstance(self.values[key], int | float):
                raise JobError(f"{key} must be a number, not {value!r}")

    def arguments(self) -> list[str]:
        """Return the words of the command line after ``wsi-idc``; file patterns are expanded."""
        words: list[str] = []
        for key, value in self.settings.items():
            option = self.spec.options[key]
            if key in self.spec.flags:
                words += [option] if value else []
            elif option:
                names = itertools.chain(*_expand(value))
                words += [word for name in names for word in (option, name)]
        arguments: list[str] = []
        for key in [key for key, option in self.spec.options.items() if not option]:
            for files in _expand(self.settings.get(key, [])):
                arguments += _finished(files) if key == "runs" else files
        # The command treats every word after "--" as an argument, never as an option.
        end = ["--", *arguments] if arguments else []
        return [self.command, *words, *self.passthrough_args, *end]

    def command_line(self) -> str:
        """Return the complete command line as text that can be pasted into a shell."""
        return shlex.join(["wsi-idc", *self.arguments()])

    def unfinished_runs(self) -> list[str]:
        """Return the runs that ``arguments`` leaves out because their training is unfinished."""
        lists = _expand(self.settings.get("runs", []))
        return sorted({run for runs in lists for run in set(runs) - set(_finished(runs))})


@dataclass(frozen=True)
class Job:
    """Job that was read from a job file.

    Attributes:
        path: Path of the job file.
        command: Name of the command that all tasks run.
        name: Name of the job.
        tasks: Tasks of the job; the first task has number 1.
        single_call: One task that does the work of all ``tasks``. None if the tasks cannot be
            combined.
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
            have = "only task 1" if count == 1 else f"tasks 1 to {count}"
            raise JobError(f"{self.path}: no task {number}; the job has {have}")
        return self.tasks[number - 1]


def read_job(
    path: Path,
    commands: Mapping[str, CommandSpec],
    *,
    overrides: Mapping[str, Any],
    passthrough_args: Sequence[str],
) -> Job:
    """Read and check a job file.

    Args:
        path: Path of the job file.
        commands: All commands that a job can run; the keys are their names.
        overrides: Settings that replace settings of the job file. The name of a run contains them.
        passthrough_args: Arguments that are passed to every task unchanged, such as the device.

    Raises:
        JobError: The file cannot be read, or its content is not valid.
    """
    content = toml_file.load_toml(path)
    if content.get("command") == SEARCH:
        read_search(path)
    try:
        command, name = toml_file.command_and_name(content, path, commands)
        spec, num_parts = commands[command], toml_file.typed("tasks", content.get("tasks", 1), int)
        if not 1 <= num_parts <= MAX_TASKS:
            raise JobError(f"tasks is {num_parts}; it must be from 1 to {MAX_TASKS}")
        make_task = partial(Task, command, spec, passthrough_args=passthrough_args)
        if command == SEARCH:
            single = make_task({"job": str(path), "out": str(DEFAULT_RUNS / name), **overrides})
            return Job(path, command, name, [single] * num_parts, single)
        toml_file.check_keys("the file", content, ["command", "name", "tasks", "config", "axes"])
        if num_parts > 1 and command != MAP:
            raise JobError("the key tasks is only for a search or a map; remove this key")
        fixed, points = _read_settings(content, command, spec, overrides)
        if command == TRAIN:
            return Job(path, command, name, _train_tasks(name, make_task, fixed, points, overrides))
        single = make_task({**fixed, **overrides})
        if num_parts == 1:
            return Job(path, command, name, [single])
        if "shard" in single.settings:
            raise JobError("the keys tasks and shard cannot be combined; remove one of them")
        shards = [f"{number}/{num_parts}" for number in range(1, num_parts + 1)]
        parts = [make_task({**single.settings, "shard": shard}) for shard in shards]
        return Job(path, command, name, parts, single)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def _read_settings(
    content: Mapping[str, Any], command: str, spec: CommandSpec, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the [config] settings, and a list with each combination of the values of [axes]."""
    fixed, axes = (toml_file.table(content, name, spec.options) for name in ("config", "axes"))
    if command == MAP and _MAP_INPUTS & overrides.keys():
        fixed = {key: value for key, value in fixed.items() if key not in _MAP_INPUTS}
    for key, axis in axes.items():
        if not isinstance(axis, list) or not axis:
            raise JobError(f"axis {key} must be a list of values, not {axis!r}")
        if len(axis) > MAX_TASKS:
            raise JobError(f"axis {key} has {len(axis)} values; at most {MAX_TASKS} are allowed")
        if len(set(map(repr, axis))) < len(axis):
            raise JobError(f"axis {key} contains a value twice")
        if key in fixed:
            raise JobError(f"{key} is both in [config] and in [axes]; choose one")
        if key in overrides:
            raise JobError(f"{key} is an axis of this job, so a flag cannot set it")
    if axes and command != TRAIN:
        raise JobError("[axes] is only for train and search; use tasks = N to split a map")
    num_points = math.prod(map(len, axes.values()))
    if num_points > MAX_TASKS:  # a list of all points may not fit into memory
        raise JobError(f"{num_points} tasks, but at most {MAX_TASKS} are allowed; shorten an axis")
    points = itertools.product(*axes.values())
    return fixed, [dict(zip(axes, point, strict=True)) for point in points]


def _train_tasks(
    name: str,
    make_task: Callable[[Mapping[str, Any]], Task],
    fixed: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any],
) -> list[Task]:
    """Return one training task per combination of [axes] values, each with its own run folder."""
    fields, tasks, slugs = train_types(), [], []
    own = {key: value for key, value in overrides.items() if fixed.get(key) != value}
    for point in points:
        try:
            task = make_task({**fixed, **point, **overrides})
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
            raise JobError(
                "out gives one folder to all tasks; remove this key for one folder per task"
            )
        return tasks
    if len(set(slugs)) < len(slugs):
        slugs = [f"task-{number}" for number in range(1, len(slugs) + 1)]
    outs = [str(DEFAULT_RUNS / (f"{name}-{slug}" if slug else name)) for slug in slugs]
    return [
        replace(task, settings={**task.settings, "out": out})
        for task, out in zip(tasks, outs, strict=True)
    ]


def _finished(paths: list[str]) -> list[str]:
    """Return ``paths`` without unfinished runs. If no path remains, return all paths."""
    finished = [path for path in paths if not Path(path).is_dir() or Run(Path(path)).is_finished()]
    return finished if len(paths) > 1 and finished else paths


def _expand(value: Any) -> list[list[str]]:
    """Return one list for each value.

    If the value is a pattern of existing files, its list has these files. Else its list has only
    the value.
    """
    lists = []
    for text in map(str, value if isinstance(value, list) else [value]):
        is_pattern = "*" in text or "?" in text
        files = glob.glob(text) if is_pattern else []  # noqa: PTH207 - for absolute paths
        lists.append(sorted(files) or [text])
    return lists
