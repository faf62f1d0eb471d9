"""Specification of a search, read from a job file: fixed settings, axes and sampler."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from wsi_idc.core.constants import MAX_SEED
from wsi_idc.core.errors import JobError, RunError
from wsi_idc.core.metric_table import MONITOR_METRICS
from wsi_idc.core.toml_file import check_keys, command_and_name, load_toml, table, typed
from wsi_idc.training.config import TrainConfig

SEARCH = "search"
SAMPLERS = ("grid", "random", "tpe")
MAX_POINTS = 10_000
_WORDS = {option.name: option.metadata["words"] for option in fields(TrainConfig)}
Value = bool | int | float | str


@dataclass(frozen=True)
class Range:
    """A range of numbers from ``low`` to ``high``; both ends belong to the range.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether the sampler draws values evenly on a logarithmic scale.
        step: Distance from one possible value to the next; None if all numbers are possible.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def problem(self) -> str | None:
        """Return the reason why the range is not valid; None if it is valid."""
        if not -math.inf < self.low < self.high < math.inf:
            return "low must be below high"
        if self.log and self.low <= 0:
            return "low must be above 0 if log is true"
        if self.step is None:
            return None
        if self.log:
            return "log and step cannot be combined"
        if not 0 < self.step < math.inf:
            return "step must be above 0"
        if (self.high - self.low) / self.step > MAX_POINTS**2:
            return "step is too small"
        # Decimal is exact: as a float, 0.3 is not a multiple of 0.1.
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return f"high - low is not a multiple of step {self.step}" if (high - low) % step else None


Axis = tuple[Value, ...] | Range


@dataclass(frozen=True)
class SearchSpec:
    """Specification of a search for good training settings; each trial is one training.

    Attributes:
        name: Name of the search; also the default name of its folder.
        fixed: Settings that are the same in all trials; the keys are fields of ``TrainConfig``.
        axes: Possible values of each varied setting. A point has one value from each axis.
        sampler: Method that chooses the settings of each trial, one of ``SAMPLERS``.
        trials: Number of trials of the sampler "random" or "tpe". The sampler "grid" ignores this
            number and runs one trial per point.
        seed: Seed of the sampler.
        prune: Whether a trial is stopped early if it is worse than the median of earlier trials.
        metric: Metric to maximize; it is measured on the val patients.
    """

    name: str
    fixed: Mapping[str, Value]
    axes: Mapping[str, Axis]
    sampler: str = "grid"
    trials: int = 20
    seed: int = 0
    prune: bool = False
    metric: str = "average_precision"

    def __post_init__(self) -> None:
        for name, choices in (("sampler", SAMPLERS), ("metric", MONITOR_METRICS)):
            if (value := getattr(self, name)) not in choices:
                raise JobError(f"{name} {value!r} is not one of {', '.join(choices)}")
        if self.trials < 1:
            raise JobError(f"trials is {self.trials}; it must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise JobError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")
        if not self.axes:
            raise JobError("[axes] is empty; add at least one setting with a list of values")
        for name, axis in self.axes.items():
            if name in self.fixed:
                raise JobError(f"{name} is both in [config] and in [axes]; choose one")
            if problem := self._problem(axis):
                raise JobError(f"axis {name}: {problem}")
        if self.sampler == "grid" and self.num_points > MAX_POINTS:
            raise JobError(
                f"the grid has {self.num_points} points, but at most {MAX_POINTS} are allowed; "
                'shorten an axis or use sampler = "random"'
            )
        for point in itertools.islice(self.points(), MAX_POINTS):
            try:
                self.config(point)
            except RunError as error:
                raise JobError(f"at {format_point(point)}: {error}") from None

    def _problem(self, axis: Axis) -> str | None:
        if isinstance(axis, Range):
            needs_list = "sampler grid needs a list of values; give a list or another sampler"
            return axis.problem() or (needs_list if self.sampler == "grid" else None)
        if not axis:
            return "the list is empty"
        value, count = Counter(axis).most_common(1)[0]
        return f"{value!r} occurs twice" if count > 1 else None

    @property
    def num_points(self) -> int:
        """Number of points of the grid; a range counts as two values (low and high)."""
        return math.prod(2 if isinstance(axis, Range) else len(axis) for axis in self.axes.values())

    @property
    def num_trials(self) -> int:
        """Number of trials that the search runs."""
        return self.num_points if self.sampler == "grid" else self.trials

    def points(self, *varied: str) -> Iterator[dict[str, Value]]:
        """Yield the grid points; the last axis varies fastest. A ``Range`` has 2 values: low, high.

        Args:
            varied: Names of the axes to vary; all axes if empty. Other axes keep their first value.
        """
        values = []
        for name, axis in self.axes.items():
            ends = (axis.low, axis.high) if isinstance(axis, Range) else axis
            values.append(ends if not varied or name in varied else ends[:1])
        for point in itertools.product(*values):
            yield dict(zip(self.axes, point, strict=True))

    def config(self, point: Mapping[str, Value]) -> TrainConfig:
        """Return the training settings of a trial: ``fixed`` and the settings in ``point``."""
        settings: dict[str, Any] = {**self.fixed, **point}
        return TrainConfig(**settings)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that identify the search, as a dictionary for a JSON file.

        The number of trials is left out, because the user may increase it later.
        """
        settings = asdict(self.config(next(self.points())))
        for name, axis in self.axes.items():
            del settings[name]
            settings[f"axes.{name}"] = asdict(axis) if isinstance(axis, Range) else list(axis)
        for name in ("sampler", "prune", "metric"):
            settings[f"search.{name}"] = getattr(self, name)
        return {**settings, "search.seed": None if self.sampler == "grid" else self.seed}


def format_point(point: Mapping[str, Value]) -> str:
    """Return a point as text, such as ``learning_rate 0.001, optimizer sgd``."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in point.items())


def format_value(value: object) -> str:
    """Return the value of a setting as text; a float has 4 significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_search(path: Path) -> SearchSpec:
    """Read the job file of a search and check all points; raise JobError for an invalid file."""
    content = load_toml(path)
    if content.get("command") != SEARCH:
        raise JobError(f'{path}: this job is not a search; give a file with command = "search"')
    try:
        _, name = command_and_name(content, path, [SEARCH])
        check_keys("the file", content, ["command", "name", "tasks", "config", "search", "axes"])
        types = {"sampler": str, "trials": int, "seed": int, "prune": bool, "metric": str}
        options = _typed_table(content, "search", types)
        if "trials" in options and options.get("sampler", "grid") == "grid":
            raise JobError("trials is only for sampler random or tpe; sampler grid runs all points")
        types = train_types()
        fixed, axes = _typed_table(content, "config", types), table(content, "axes", types)
        axes = {key: _axis(key, value, types[key]) for key, value in axes.items()}
        return SearchSpec(name=name, fixed=fixed, axes=axes, **options)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def train_types() -> dict[str, type]:
    """Return the name and the type of each setting of a training."""
    return {option.name: type(option.default) for option in fields(TrainConfig)}


def _typed_table(content: Mapping[str, Any], name: str, types: dict[str, type]) -> dict[str, Any]:
    values = table(content, name, types)
    return {key: _typed_setting(key, key, value, types[key]) for key, value in values.items()}


def _typed_setting(name: str, key: str, value: Any, kind: type) -> Any:
    """Return the value of a setting if it has the type ``kind``, or is a word of this setting."""
    is_word = isinstance(value, str) and value in _WORDS.get(key, ())
    return value if is_word else typed(name, value, kind)


def _axis(key: str, value: Any, kind: type) -> Axis:
    name = f"axis {key}"
    if isinstance(value, list):
        return tuple(_typed_setting(name, key, item, kind) for item in value)
    if not isinstance(value, dict) or kind not in (int, float):
        ranges = " or a range such as {low = 1, high = 2}" if kind in (int, float) else ""
        raise JobError(f"{name} must be a list{ranges}, not {value!r}")
    types = {"low": kind, "high": kind, "log": bool, "step": kind}
    check_keys(name, value, types)
    for end in ("low", "high"):
        if end not in value:
            raise JobError(f"{name} has no value {end}")
    return Range(**{key: typed(f"{name}: {key}", v, types[key]) for key, v in value.items()})
