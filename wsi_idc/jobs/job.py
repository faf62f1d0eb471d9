"""Read a job file: a TOML that says what to compute, and never where.

``command`` is the name of a command and ``name`` (the file's stem by default) that of the job.
``[config]`` has the command's flags, spelled with underscores; each combination of the lists in
``[axes]`` is a task of its own. ``tasks`` splits what settings cannot tell apart: the patients of a
``map``, the trials of a ``search``.
"""

import glob
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from wsi_idc.core.toml_file import typed as typed_value
from wsi_idc.search.config import SEARCH, search_spec, train_types
from wsi_idc.training.config import TrainConfig
from wsi_idc.training.runs import Run

TRAIN, MAP = "train", "map"
# Of these a map is of one kind: what is given takes the place of what the file has.
_WHAT_TO_MAP = {"all", "patient", "patients_file", "slide", "files", "manifest"}
_LONGEST_SLUG = 60


@dataclass(frozen=True)
class OptionSpec:
    """What a command takes under one key.

    Attributes:
        option: As it is spelled on the command line, empty for a plain argument.
        kind: bool for a switch, else int, float or str.
        is_list: Whether it may be given more than once.
    """

    option: str
    kind: type
    is_list: bool = False


Flags = Mapping[str, OptionSpec]


@dataclass(frozen=True)
class Task:
    """One call of a command.

    Attributes:
        command: Its name.
        settings: Value of each key that is set.
        flags: What the command takes.
        extra: Arguments that go to the command as they are.
    """

    command: str
    settings: Mapping[str, Any]
    flags: Flags
    extra: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return the command line behind ``wsi-idc``; patterns of files are matched now."""
        options: list[str] = []
        for key, value in self.settings.items():
            flag = self.flags[key]
            for one in value if flag.is_list else [value]:
                if flag.kind is bool:
                    options += [flag.option] if one else []
                elif flag.option:
                    options += [word for name in matches(one) for word in (flag.option, name)]
        plain = self.plain_arguments()
        # Behind -- nothing of a file can become an option.
        return [self.command, *options, *self.extra, *(["--", *plain] if plain else [])]

    def plain_arguments(self) -> list[str]:
        """Return what the command takes without a flag, in the command's order."""
        plain: list[str] = []
        for key, flag in self.flags.items():
            if flag.option or key not in self.settings:
                continue
            value = self.settings[key]
            for one in value if flag.is_list else [value]:
                plain += _finished(matches(one)) if key == "runs" else matches(one)
        return plain

    def unfinished_runs(self) -> list[str]:
        """Return the runs that are not among the arguments because they are not finished."""
        found = [matches(one) for one in self.settings.get("runs", ())]
        return sorted({path for some in found for path in set(some) - set(_finished(some))})


@dataclass(frozen=True)
class Job:
    """What a job file asks for.

    Attributes:
        path: The file.
        command: Name of the command that each task runs.
        name: Of the job.
        tasks: Its pieces, the first one being task 1.
        whole: The one call that does the work of all tasks, where there is such a call.
    """

    path: Path
    command: str
    name: str
    tasks: Sequence[Task]
    whole: Task | None = None

    def task(self, number: int) -> Task:
        """Return a task by its number, from 1.

        Raises:
            JobError: There is none of that number.
        """
        count = len(self.tasks)
        if not 1 <= number <= count:
            have = "one task, 1" if count == 1 else f"{count} tasks, 1 to {count}"
            raise JobError(f"{self.path}: no task {number}; the job has {have}")
        return self.tasks[number - 1]


def read_job(
    path: Path,
    commands: Mapping[str, Flags],
    *,
    given: Mapping[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> Job:
    """Read and check a job file.

    Args:
        path: The file.
        commands: What each command that a job may run takes.
        given: Settings that override those of the file. A training with other settings than the
            file's has a run of its own, named after them.
        extra: Arguments for each task's command that are no settings, such as its device.

    Raises:
        JobError: It cannot be read, or asks for something that makes no sense.
    """
    content, given = load_toml(path), given or {}
    try:
        command, name = command_and_name(content, path, commands)
        if command == SEARCH:
            search_spec(name, content)
            settings = {"job": str(path), "out": str(DEFAULT_RUNS / name), **given}
            whole = Task(SEARCH, settings, commands[SEARCH], tuple(extra))
            return Job(path, SEARCH, name, [whole] * num_tasks(content), whole=whole)
        points, settings_of = _settings_of_tasks(content, name, command, commands[command], given)
        tasks = [Task(command, one, commands[command], tuple(extra)) for one in settings_of]
        num_parts = num_tasks(content)
        if num_parts == 1:
            return Job(path, command, name, tasks)
        if "shard" in tasks[0].settings:
            raise JobError("shard is one of the parts that tasks makes; leave one of the two out")
        if command != MAP or len(points) > 1:
            raise JobError("tasks is for a search, or for a map without [axes]; leave it out")
    except JobError as error:
        raise JobError(f"{path}: {error}") from None
    whole = tasks[0]
    parts = [
        replace(whole, settings={**whole.settings, "shard": f"{number}/{num_parts}"})
        for number in range(1, num_parts + 1)
    ]
    return Job(path, command, name, parts, whole=whole)


def _settings_of_tasks(
    content: Mapping[str, Any], name: str, command: str, flags: Flags, given: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return, for each task, its place on the axes and all of its settings."""
    check_keys("the file", content, ["command", "name", "tasks", "config", "axes"])
    fixed = {
        key: _typed(key, value, flags[key])
        for key, value in _known(content, "config", flags).items()
    }
    if command == MAP and _WHAT_TO_MAP & given.keys():
        fixed = {key: value for key, value in fixed.items() if key not in _WHAT_TO_MAP}
    axes = {
        key: _axis(key, value, flags[key]) for key, value in _known(content, "axes", flags).items()
    }
    for key in axes:
        if key in fixed:
            raise JobError(f"{key} is both in [config] and in [axes]; choose one")
        if key in given:
            raise JobError(f"{key} is an axis of this job, so it cannot be set for all tasks")
    num_points = math.prod(map(len, axes.values()))
    if num_points > MAX_TASKS:  # ahead of making them
        raise JobError(f"{num_points} tasks; at most {MAX_TASKS}, so shorten an axis")
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    if axes and command != TRAIN:
        raise JobError(f"[axes] is for train and search; tasks = N splits a map, {command} has one")
    settings = [{**fixed, **point, **given} for point in points]
    if command == TRAIN:
        own = {key: value for key, value in given.items() if fixed.get(key) != value}
        own_words = {key: f"{key} {value}" for key, value in own.items()}
        _name_runs(name, [{**point, **own_words} for point in points], settings)
    return points, settings


def _name_runs(
    name: str, apart: Sequence[Mapping[str, Any]], settings: Sequence[dict[str, Any]]
) -> None:
    """Check trainings, and give each a run named after the job and what sets it apart."""
    known = train_types()
    for point, one in zip(apart, settings, strict=True):
        try:
            TrainConfig(**{key: value for key, value in one.items() if key in known})
        except RunError as error:
            where = ", ".join(f"{key} {one[key]}" for key in point)
            raise JobError(f"at {where}: {error}" if where else str(error)) from None
    if any("out" in one for one in settings):
        if len(settings) > 1:
            raise JobError("out is one folder, and each task needs its own; leave it out")
        return
    slugs = [_slug(value for key, value in point.items() if key in known) for point in apart]
    are_unique = len(set(slugs)) == len(slugs)
    for number, (slug, one) in enumerate(zip(slugs, settings, strict=True), start=1):
        ending = slug if are_unique else f"task-{number}"
        one["out"] = str(DEFAULT_RUNS / (f"{name}-{ending}" if ending else name))


def _slug(values: Any) -> str:
    text = "-".join(str(value) for value in values)
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:_LONGEST_SLUG]


def _known(content: Mapping[str, Any], key: str, flags: Flags) -> dict[str, Any]:
    found = table(content, key)
    check_keys(f"[{key}]", found, flags)
    return found


def _typed(key: str, value: Any, flag: OptionSpec) -> Any:
    if not flag.is_list:
        return typed_value(key, value, flag.kind)
    if not isinstance(value, list):
        raise JobError(f"{key} must be a list, not {value!r}")
    return [typed_value(key, one, flag.kind) for one in value]


def _axis(key: str, value: Any, flag: OptionSpec) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise JobError(f"axis {key} must be a list with a value for each task, not {value!r}")
    if len(value) > MAX_TASKS:
        raise JobError(f"axis {key} has {len(value)} values; at most {MAX_TASKS}")
    found = [_typed(f"axis {key}", one, flag) for one in value]
    if len(set(map(repr, found))) < len(found):
        raise JobError(f"axis {key} has a value twice")
    return found


def _finished(found: list[str]) -> list[str]:
    """Leave out runs that are not finished, unless that would leave none."""
    if len(found) < 2:
        return found
    finished = [path for path in found if not Path(path).is_dir() or Run(Path(path)).is_finished()]
    return finished or found


def matches(value: Any) -> list[str]:
    """Return the files that a pattern stands for, or the text itself where it is none."""
    text = str(value)
    if not any(sign in text for sign in "*?"):
        return [text]
    return sorted(glob.glob(text)) or [text]  # noqa: PTH207 - as the shell would, absolute or not
