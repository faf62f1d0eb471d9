"""Log of a training: metrics.jsonl, metric loggers, curves and augmented sample patches."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsi_idc.explore.patch_figures import augmented_samples
from wsi_idc.plotting.colors import INK
from wsi_idc.plotting.style import ACCENT, OTHER, THIRD, house_style, save_png
from wsi_idc.training.metric_loggers import MetricLogger, open_logger
from wsi_idc.training.runs import CURVES, SAMPLES
from wsi_idc.training.state import Training

# For each key of an epoch's record: label, color and marker of its curve.
_LOSSES = {"train_loss": ("train", ACCENT, "o"), "val_loss": ("val", OTHER, "s")}
_SCORES = {"val_average_precision": ("AP", OTHER, "s"), "val_auc": ("AUC", THIRD, "^")}
_RATE = {"learning_rate": ("learning rate", INK, "o")}


class RunLogger(AbstractContextManager["RunLogger"]):
    """Logger of a run: the main process writes metrics.jsonl, figures and the metric loggers.

    ``loggers`` has names of ``LOGGERS``.
    """

    def __init__(self, training: Training, *, loggers: Sequence[str] = ()) -> None:
        self._training = training
        self._loggers: list[MetricLogger] = []
        if not training.world.is_main:
            return
        samples, config = training.run.folder / SAMPLES, training.config
        if not samples.exists():
            rows = training.rows["train"]
            augmented_samples(training.pack, rows, config.augment, seed=config.seed, path=samples)
        settings = asdict(config)
        self._loggers += [open_logger(name, training.run, settings) for name in loggers]
        # Log again: an earlier process may have saved an epoch but ended before it logged this one.
        if training.state.history:
            self.log_epoch()

    def __exit__(self, *error: object) -> None:
        for metric_logger in self._loggers:
            metric_logger.close(is_complete=self._training.is_complete)

    def log_epoch(self) -> None:
        """Write the records of all epochs that are not yet logged."""
        run, state = self._training.run, self._training.state
        if not self._training.world.is_main:
            return
        run.write_history(state.history)
        with house_style():
            save_png(draw_curves(state.history, best_epoch=state.best_epoch), run.folder / CURVES)
        for metric_logger in self._loggers:
            metric_logger.log(state.history)


def draw_curves(history: Sequence[dict[str, Any]], *, best_epoch: int | None = None) -> Figure:
    """Draw three charts over the epochs: the losses, the scores on val, and the learning rate.

    Args:
        history: One record per epoch, as in ``metrics.jsonl``. Missing values are not drawn.
        best_epoch: Number of the best epoch, marked by a dashed line; None: no line.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, score, rate = figure.subplots(1, 3, width_ratios=[4, 4, 2.6])
    _draw(loss, history, _LOSSES)
    loss.set(title="Loss (cross-entropy)", ylabel="loss")
    _draw(score, history, _SCORES)
    score.set(title="Val patients", ylabel="AP and AUC")
    if best_epoch:
        score.axvline(best_epoch, color=INK, linestyle="--", linewidth=0.8, zorder=0)
        score.set_title(f"Val patients; dashed: best epoch {best_epoch}")
    _draw(rate, history, _RATE)
    rate.set(title="Learning rate", ylabel="at the end of the epoch")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for ax in (loss, score):
        if ax.lines:
            ax.legend(framealpha=1, edgecolor="none")
    return figure


def _draw(
    ax: Axes, history: Sequence[dict[str, Any]], curves: dict[str, tuple[str, str, str]]
) -> None:
    for key, (name, color, marker) in curves.items():
        points = [
            (record["epoch"], float(record[key]))
            for record in history
            if record.get(key) is not None and math.isfinite(record[key])
        ]
        if points:
            # Without a marker, a single epoch is not visible; a long curve needs no markers.
            size = 4 if len(points) <= 40 else 0
            ax.plot(*zip(*points, strict=True), marker, ls="-", ms=size, color=color, label=name)
    if not ax.lines:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", va="center")
        ax.set_yticks([])
    last = max((record["epoch"] for record in history), default=1)
    pad = max(0.5, 0.02 * last)
    ax.set(xlabel="epoch", xlim=(1 - pad, last + pad))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
