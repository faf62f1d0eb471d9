"""What a search is asked to do, as one immutable value: fixed settings, axes, and the sampler."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from wsi_idc.core.constants import MAX_SEED
from wsi_idc.core.errors import JobError, RunError
from wsi_idc.core.metric_table import MONITOR_METRICS
from wsi_idc.core.toml_file import (
    check_keys,
    command_and_name,
    load_toml,
    table,
    typed,
    validate_job_name,
)
from wsi_idc.training.config import TrainConfig

SAMPLERS = ("grid", "random", "tpe")
MAX_POINTS = 10_000
Value = bool | int | float | str


@dataclass(frozen=True)
class Range:
    """A range of numbers, both ends included.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Draw evenly in the logarithm.
        step: Distance between values, None for all values between the ends.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def problem(self) -> str | None:
        """Return what makes no sense about the range, None where it does."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            return "low must be below high"
        if self.log and self.low <= 0:
            return "low must be above 0 for log"
        if self.step is None:
            return None
        if self.log:
            return "log and step cannot go together"
        if not 0 < self.step < math.inf:
            return "step must be above 0"
        if (self.high - self.low) / self.step > MAX_POINTS**2:
            return "step is far too small"
        # In decimals, as written: 0.3 is three steps of 0.1.
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return f"step {self.step} does not lead from low to high" if (high - low) % step else None


Axis = tuple[Value, ...] | Range


@dataclass(frozen=True)
class SearchSpec:
    """A search over settings of a training.

    Attributes:
        name: Of the search and, by default, of its folder.
        fixed: Settings that all trials share; fields of ``TrainConfig`` with values of their types.
        axes: Settings that differ, in the order in which a grid nests them.
        sampler: One of ``SAMPLERS``.
        trials: Of random and tpe; a grid runs all of its points.
        seed: Of the sampler.
        prune: Cut trials short that are below the median of the earlier ones.
        metric: On val, the larger the better.

    Raises:
        JobError: A value makes no sense, or ``TrainConfig`` refuses a point.
    """

    name: str
    fixed: Mapping[str, Value]
    axes: Mapping[str, Axis]
    sampler: str = "grid"
    trials: int = 20
    seed: int = 0
    prune: bool = False
    metric: str = "average_precision"
    num_points: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        validate_job_name(self.name)
        self._check_options()
        self._check_axes()
        sizes = (2 if isinstance(axis, Range) else len(axis) for axis in self.axes.values())
        object.__setattr__(self, "num_points", math.prod(sizes))
        if self.sampler == "grid" and self.num_points > MAX_POINTS:
            raise JobError(
                f"a grid of {self.num_points} trials; at most {MAX_POINTS}, so shorten an axis or "
                'use sampler = "random"'
            )
        for point in itertools.islice(self.points(), MAX_POINTS):
            try:
                self.config(point)
            except RunError as error:
                raise JobError(f"at {format_point(point)}: {error}") from None

    def _check_options(self) -> None:
        for name, choices in (("sampler", SAMPLERS), ("metric", MONITOR_METRICS)):
            value = getattr(self, name)
            if value not in choices:
                raise JobError(f"{name} {value!r} is not one of {', '.join(choices)}")
        if self.trials < 1:
            raise JobError(f"trials is {self.trials}; it must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise JobError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")

    def _check_axes(self) -> None:
        if not self.axes:
            raise JobError("[axes] is empty; name at least one setting to search over")
        for name, axis in self.axes.items():
            if name in self.fixed:
                raise JobError(f"{name} is both in [config] and in [axes]; choose one")
            if isinstance(axis, Range):
                problem = axis.problem()
                if not problem and self.sampler == "grid":
                    problem = "a grid needs a list of values, or choose another sampler"
            elif not axis:
                problem = "the list is empty"
            else:
                twice = [value for value, count in Counter(axis).items() if count > 1]
                problem = f"{twice[0]!r} is there twice" if twice else None
            if problem:
                raise JobError(f"axis {name}: {problem}")

    @property
    def num_trials(self) -> int:
        """How many trials the whole search has."""
        return self.num_points if self.sampler == "grid" else self.trials

    def points(self, *varied: str) -> Iterator[dict[str, Value]]:
        """Yield the points of the grid, the last axis fastest; of a range, its two ends.

        Args:
            varied: Axes to go through, with the others at their first value; none: all axes.
        """
        values = [
            (axis.low, axis.high) if isinstance(axis, Range) else axis
            for axis in self.axes.values()
        ]
        if varied:
            values = [
                value if name in varied else value[:1]
                for name, value in zip(self.axes, values, strict=True)
            ]
        for point in itertools.product(*values):
            yield dict(zip(self.axes, point, strict=True))

    def config(self, point: Mapping[str, Value]) -> TrainConfig:
        """Return the configuration of the trial at ``point``.

        Raises:
            RunError: It makes no sense.
        """
        settings: dict[str, Any] = {**self.fixed, **point}
        return TrainConfig(**settings)

    def as_dict(self) -> dict[str, Any]:
        """Return all that must stay the same for two calls to be one search, JSON-ready.

        More trials may be asked for later, so their number is not in it.
        """
        config = self.config(next(self.points())).as_dict()
        return {
            **{name: value for name, value in config.items() if name not in self.axes},
            **{
                f"axes.{name}": asdict(axis) if isinstance(axis, Range) else list(axis)
                for name, axis in self.axes.items()
            },
            **{f"search.{name}": getattr(self, name) for name in ("sampler", "prune", "metric")},
            "search.seed": None if self.sampler == "grid" else self.seed,
        }


def format_point(point: Mapping[str, Value]) -> str:
    """Return a point as text, such as ``learning_rate 0.001, optimizer sgd``."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in point.items())


def format_value(value: object) -> str:
    """Return a setting's value as short as can be."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


SEARCH = "search"


def read_search(path: Path) -> SearchSpec:
    """Read and check the job file of a search; all that it leads to is checked here.

    Raises:
        JobError: It cannot be read, is of another command, or asks for something that makes no
            sense.
    """
    content = load_toml(path)
    if content.get("command") != SEARCH:
        raise JobError(f'{path}: no search; give a file with command = "search"')
    try:
        return search_spec(command_and_name(content, path, [SEARCH])[1], content)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def search_spec(name: str, content: Mapping[str, Any]) -> SearchSpec:
    """Return the search that a job file's content asks for.

    Raises:
        JobError: It makes no sense.
    """
    check_keys("the file", content, ["command", "name", "tasks", "config", "search", "axes"])
    options = table(content, "search")
    types = {"sampler": str, "trials": int, "seed": int, "prune": bool, "metric": str}
    check_keys("[search]", options, types)
    options = {key: typed(key, value, types[key]) for key, value in options.items()}
    if "trials" in options and options.get("sampler", "grid") == "grid":
        raise JobError("trials is for sampler random or tpe; a grid runs all of its points")
    kinds = train_types()
    fixed = table(content, "config")
    check_keys("[config]", fixed, kinds)
    return SearchSpec(
        name=name,
        fixed={key: typed(key, value, kinds[key]) for key, value in fixed.items()},
        axes=_axes(table(content, "axes")),
        **options,
    )


def train_types() -> dict[str, type]:
    """Return the type of each setting of a training."""
    return {option.name: type(option.default) for option in fields(TrainConfig)}


def _axes(found: Mapping[str, Any]) -> dict[str, Axis]:
    types = train_types()
    check_keys("[axes]", found, types)
    return {name: _axis(name, value, types[name]) for name, value in found.items()}


def _axis(name: str, value: Any, kind: type) -> Axis:
    if isinstance(value, list):
        return tuple(typed(f"axis {name}", item, kind) for item in value)
    if not isinstance(value, dict) or kind not in (int, float):
        ranges = " or a range, {low = 1, high = 2}" if kind in (int, float) else ""
        raise JobError(f"axis {name} must be a list{ranges}, not {value!r}")
    ends = {"low": kind, "high": kind, "log": bool, "step": kind}
    check_keys(f"axis {name}", value, ends)
    for end in ("low", "high"):
        if end not in value:
            raise JobError(f"axis {name} lacks {end}")
    return Range(**{key: typed(f"axis {name}: {key}", it, ends[key]) for key, it in value.items()})
