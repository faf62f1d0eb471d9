"""Results of a search: a table of all trials, a figure, and the job file of the best trial."""

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

from wsi_idc.core.csv_table import csv_text
from wsi_idc.core.files import write_text
from wsi_idc.plotting.colors import INK
from wsi_idc.plotting.style import ACCENT, OTHER, house_style, save_png
from wsi_idc.search.config import Range, SearchSpec, Value, format_point, format_value

TABLE, FIGURE, BEST_JOB = "trials.csv", "search.png", "best.toml"
# States of a trial, in the order of the ranking: complete trials come first.
STATES = ("complete", "pruned", "running", "waiting", "failed")
_METRICS = ("average_precision", "auc", "f1", "sensitivity", "specificity", "threshold")
_MAX_COLUMNS = 3
_MAX_TICK_LETTERS = 30
_LETTERS_PER_INCH = 12


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    Attributes:
        number: Number of the trial, counted from 0.
        state: State of the trial, one of ``STATES``.
        point: Value of the trial on each axis. The point of a waiting trial may be empty.
        value: Value of the metric of the search. For a complete trial, this is the value of the
            best epoch. For all other trials, this is the value of the last finished epoch, or None.
        metrics: All metrics on the val patients, and the threshold of the checkpoint; None for an
            incomplete trial. Trials of older versions have no threshold.
        config: All settings of the training; None for an incomplete trial.
        best_epoch: Epoch of the checkpoint; None for an incomplete trial.
        seconds: Time in s that was spent on the trial so far.
        reason: Reason why the trial failed; None for other trials.
        same_as: Number of an earlier trial with the same point. This trial has the result and the
            run of the earlier trial. None if this trial has its own run.
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
    same_as: int | None = None

    def run_folder(self, folder: Path) -> Path:
        """Return the run directory of the trial's training in the folder of a search."""
        return run_folder(folder, self.number if self.same_as is None else self.same_as)


@dataclass(frozen=True)
class SearchResult:
    """Results of a search.

    Attributes:
        spec: Specification of the search.
        folder: Folder of the search.
        trials: All trials, sorted by ``rank_trials``.
    """

    spec: SearchSpec
    folder: Path
    trials: Sequence[Trial]

    @property
    def best(self) -> Trial | None:
        """Complete trial with the largest value; None if no trial is complete."""
        return next(iter(self.having("complete")), None)

    def having(self, state: str) -> list[Trial]:
        """Return the trials whose state is ``state``."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def checkpoint(self) -> Path | None:
        """Path of the checkpoint of the best trial; None if no trial is complete."""
        return self.best.run_folder(self.folder) / "best.pt" if self.best else None

    def rows(self) -> list[dict[str, Any]]:
        """Return a table row for each trial; None means that a value is missing."""
        metric = self.spec.metric
        return [
            {
                "number": trial.number,
                "state": trial.state,
                **{name: trial.point.get(name) for name in self.spec.axes},
                **{name: (trial.metrics or {}).get(name) for name in (metric, *_METRICS)},
                metric: trial.value,
                "best_epoch": trial.best_epoch,
                "seconds": trial.seconds,
                "run": str(trial.run_folder(self.folder)),
                "reason": trial.reason,
            }
            for trial in self.trials
        ]


def run_folder(folder: Path, number: int) -> Path:
    """Return the run directory of trial ``number`` in the folder of a search."""
    return folder / f"trial-{number:04d}"


def rank_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials sorted by state (order of ``STATES``), then by value, then by number.

    Only complete and pruned trials are sorted by value; the largest value comes first.
    """

    def key(trial: Trial) -> tuple[int, float, int]:
        value = trial.value if trial.state in ("complete", "pruned") else None
        return STATES.index(trial.state), math.inf if value is None else -value, trial.number

    return sorted(trials, key=key)


def write_result(result: SearchResult) -> None:
    """Write trials.csv, search.png and best.toml into the folder of the search.

    If no trial is complete, only trials.csv is written.
    """
    write_text(result.folder / TABLE, csv_text(pd.DataFrame(result.rows())))
    if result.best is None:
        return
    with house_style():
        save_png(draw_search(result), result.folder / FIGURE)
    write_text(result.folder / BEST_JOB, best_job(result))


def best_job(result: SearchResult) -> str:
    """Return the text of a job file; the job trains with the settings of the best trial."""
    best, spec = result.best, result.spec
    assert best is not None and best.config is not None
    text = (
        f"# Trial {best.number}, the best of the {len(result.trials)} trials of {spec.name}: val "
        f'{spec.metric} {best.value:.4f}.\ncommand = "train"\n'
        f'name = "{spec.name[:90]}-best"\n\n[config]\n'
    )
    for name, value in best.config.items():
        if value is not None:
            # TOML writes numbers as Python does, also inf, and texts and truth values as JSON does.
            is_number = type(value) in (int, float)
            toml = repr(value) if is_number else json.dumps(value, ensure_ascii=False)
            text += f"{name} = {toml}\n"
    return text


def draw_search(result: SearchResult) -> Figure:
    """Draw one chart per varied setting: the metric of each trial over the value of the setting."""
    assert result.best is not None
    axes = result.spec.axes
    num_columns = min(len(axes), _MAX_COLUMNS)
    num_rows = -(-len(axes) // num_columns)
    width = 1.2 + 3.4 * num_columns
    figure = Figure(figsize=(width, 0.9 + 3.2 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
    for panel in panels[len(axes) :]:
        panel.remove()
    legend: dict[str, Any] = {}
    for name, panel in zip(axes, panels, strict=False):
        _draw_axis(panel, result, name)
        handles, labels = panel.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    for panel in panels[: len(axes) : num_columns]:
        panel.set_ylabel(f"val {result.spec.metric.replace('_', ' ')}")
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, frameon=False)
    point = textwrap.fill(format_point(result.best.point), int(_LETTERS_PER_INCH * width))
    title = f"{result.spec.name}: best is trial {result.best.number}\n{point}"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_axis(panel: Axes, result: SearchResult, name: str) -> None:
    axis, values = result.spec.axes[name], []
    if not isinstance(axis, Range):  # numbers are sorted; texts keep their order
        values = sorted(axis, key=lambda value: 0 if isinstance(value, str) else value)

    def scatter(trials: Sequence[Trial], *style: Any, **options: Any) -> None:
        """Draw a mark per trial; y is the metric of the trial.

        If the axis is a ``Range``, x is the value of the setting. If the axis is a list, x is the
        index of the value in the list. Other arguments are those of matplotlib's ``scatter``.
        """
        known = [(trial.point[name], trial.value) for trial in trials if trial.value is not None]
        x = [values.index(value) if values else value for value, _ in known]
        if known:
            panel.scatter(x, [y for _, y in known], *style, **options)

    panel.set_title(name.replace("_", " "), fontsize=10)
    style = {"edgecolors": ACCENT, "alpha": 0.8}
    scatter(result.having("complete"), 28, ACCENT, label="trial", **style)
    scatter(result.having("pruned"), 28, "none", label="pruned trial", **style)
    if isinstance(axis, Range):
        panel.set_xscale("log" if axis.log else "linear")
    else:
        names = [format_value(value) for value in values]
        panel.set_xticks(range(len(names)), names)
        if sum(map(len, names)) > _MAX_TICK_LETTERS:
            panel.set_xticklabels(names, rotation=30, ha="right", rotation_mode="anchor")
        panel.set_xlim(-0.5, len(names) - 0.5)
        for x, value in enumerate(values):
            complete = [t.value for t in result.having("complete") if t.point[name] == value]
            if known := [number for number in complete if number is not None]:
                mean = sum(known) / len(known)
                panel.hlines(mean, x - 0.25, x + 0.25, color=INK, linewidth=1.5, label="mean")
    scatter(result.trials[:1], 170, OTHER, marker="*", zorder=3, label="best")
