"""What came of a search's trials: ranked, as table, figure and job file of the best."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsi_idc.core.files import write_text
from wsi_idc.plotting.colors import ACCENT, OTHER
from wsi_idc.plotting.style import INK, house_style, save_png
from wsi_idc.search.config import Axis, Range, SearchSpec, Value, format_point, format_value

TABLE, FIGURE, BEST_JOB = "trials.csv", "search.png", "best.toml"
# In the order of a ranking; only the first three have a value of the metric.
STATES = ("complete", "pruned", "running", "waiting", "failed")
_METRICS = ("average_precision", "auc", "f1", "sensitivity", "specificity")
_MAX_COLUMNS = 3
_MAX_TICK_LETTERS = 30
_LETTERS_AN_INCH = 12


@dataclass(frozen=True)
class Trial:
    """One trial as the study has it.

    Attributes:
        number: From 0.
        state: One of ``STATES``.
        point: Value of each axis; empty while it waits.
        value: Of the metric; of a trial that did not come to its end, after its last epoch.
        metrics: Of a complete trial, on val.
        config: Of a complete trial, all of its settings.
        best_epoch: Of a complete trial.
        seconds: Spent on it so far.
        reason: Why it failed.
    """

    number: int
    state: str
    point: Mapping[str, Value]
    value: float | None = None
    metrics: Mapping[str, float] | None = None
    config: Mapping[str, Value] | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """A search's trials, best first.

    Attributes:
        spec: What was asked for.
        folder: Where it all lies.
        trials: Complete ones by value, then pruned ones, then the others by number.
    """

    spec: SearchSpec
    folder: Path
    trials: Sequence[Trial]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the largest value, the first one of equals."""
        return next((trial for trial in self.trials if trial.state == "complete"), None)

    def having(self, state: str) -> list[Trial]:
        """Return the trials of that state."""
        return [trial for trial in self.trials if trial.state == state]

    def run_folder(self, trial: Trial) -> Path:
        """Return a trial's run directory."""
        return run_folder(self.folder, trial.number)

    @property
    def checkpoint(self) -> Path | None:
        """The best trial's checkpoint."""
        return self.run_folder(self.best) / "best.pt" if self.best else None

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a trial, None where something is not known."""
        return [self._row(trial) for trial in self.trials]

    def _row(self, trial: Trial) -> dict[str, Any]:
        metric = self.spec.metric
        found = {name: (trial.metrics or {}).get(name) for name in (metric, *_METRICS)}
        return {
            "number": trial.number,
            "state": trial.state,
            **{name: trial.point.get(name) for name in self.spec.axes},
            **found,
            metric: trial.value,
            "best_epoch": trial.best_epoch,
            "seconds": trial.seconds,
            "run": str(self.run_folder(trial)),
            "reason": trial.reason,
        }


def run_folder(folder: Path, number: int) -> Path:
    """Return the run directory of a trial of the search in ``folder``."""
    return folder / f"trial-{number:04d}"


def rank_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials best first."""

    def key(trial: Trial) -> tuple[int, float, int]:
        judged = trial.state in ("complete", "pruned") and trial.value is not None
        value = trial.value if judged and trial.value is not None else -math.inf
        return STATES.index(trial.state), -value, trial.number

    return sorted(trials, key=key)


def write_result(result: SearchResult) -> None:
    """Write table, figure and the job file of the best trial into the search's folder."""
    table = pd.DataFrame(result.rows()).to_csv(index=False)
    write_text(result.folder / TABLE, table)
    if result.best is None:
        return
    with house_style():
        figure = draw(result)
        save_png(figure, result.folder / FIGURE)
    write_text(result.folder / BEST_JOB, best_job(result))


def best_job(result: SearchResult) -> str:
    """Return a job file that trains the best configuration, every setting of it written out."""
    best, spec = result.best, result.spec
    assert best is not None and best.config is not None
    lines = [
        f"# Trial {best.number} of the search {spec.name}, the best of {len(result.trials)} by val "
        f"{spec.metric}: {best.value:.4f}.",
        'command = "train"',
        f'name = "{spec.name[:90]}-best"',
        "",
        "[config]",
        *(
            f"{name} = {_as_toml(value)}"
            for name, value in best.config.items()
            if value is not None
        ),
    ]
    return "\n".join(lines) + "\n"


def _as_toml(value: Value) -> str:
    # A JSON text is a TOML text; numbers are spelled as Python does, infinite ones too.
    return repr(value) if type(value) in (int, float) else json.dumps(value, ensure_ascii=False)


def draw(result: SearchResult) -> Figure:
    """Draw the metric against each axis, a panel an axis."""
    axes = result.spec.axes
    num_columns = min(len(axes), _MAX_COLUMNS)
    num_rows = -(-len(axes) // num_columns)
    size = (1.2 + 3.4 * num_columns, 0.9 + 3.2 * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, axes, strict=False):
        _draw_axis(panel, result, name)
    for panel in panels[len(axes) :]:
        panel.remove()
    for panel in panels[: len(axes) : num_columns]:
        panel.set_ylabel(f"val {result.spec.metric.replace('_', ' ')}")
    handles: dict[str, Any] = {}
    for panel in panels[: len(axes)]:
        drawn, texts = panel.get_legend_handles_labels()
        handles |= dict(zip(texts, drawn, strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    assert result.best is not None
    point = textwrap.fill(format_point(result.best.point), int(_LETTERS_AN_INCH * size[0]))
    title = f"{result.spec.name}: best is trial {result.best.number}\n{point}"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_axis(panel: Axes, result: SearchResult, name: str) -> None:
    axis = result.spec.axes[name]
    panel.set_title(name.replace("_", " "), fontsize=10)
    for state, fill, what in (("complete", ACCENT, "trial"), ("pruned", "none", "pruned trial")):
        known = [
            (_place(axis, trial.point[name]), trial.value)
            for trial in result.having(state)
            if trial.value is not None
        ]
        if known:
            at, values = zip(*known, strict=True)
            panel.scatter(at, values, 28, fill, edgecolors=ACCENT, alpha=0.8, label=what)
    if isinstance(axis, Range):
        panel.set_xscale("log" if axis.log else "linear")
    else:
        names = [format_value(value) for value in _in_order(axis)]
        long = sum(map(len, names)) > _MAX_TICK_LETTERS
        turned: dict[str, Any] = (
            {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
        )
        panel.set_xticks(range(len(axis)), names, **turned)
        panel.set_xlim(-0.5, len(axis) - 0.5)
        _draw_means(panel, result, name, axis)
    best = result.best
    assert best is not None and best.value is not None
    at_best = [_place(axis, best.point[name])]
    panel.scatter(at_best, [best.value], 170, OTHER, marker="*", zorder=3, label="best")


def _draw_means(panel: Axes, result: SearchResult, name: str, axis: tuple[Value, ...]) -> None:
    """Draw the mean of the complete trials at each value."""
    for value in axis:
        found = [trial.value for trial in result.having("complete") if trial.point[name] == value]
        known = [number for number in found if number is not None]
        if known:
            mean, at = sum(known) / len(known), _place(axis, value)
            panel.hlines(mean, at - 0.25, at + 0.25, color=INK, linewidth=1.5, label="mean")


def _place(axis: Axis, value: Value) -> float:
    """Return where on the x axis a value lies: values of a list stand side by side."""
    return float(value) if isinstance(axis, Range) else _in_order(axis).index(value)


def _in_order(axis: tuple[Value, ...]) -> list[Value]:
    """Return the values of a list, numbers by size."""
    numbers = [value for value in axis if isinstance(value, int | float)]
    return sorted(numbers) if len(numbers) == len(axis) else list(axis)
