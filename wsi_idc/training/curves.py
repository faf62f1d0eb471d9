"""Draw the learning curves of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsi_idc.plotting.colors import ACCENT, OTHER, THIRD
from wsi_idc.plotting.style import INK, house_style, save_png

_LOSSES = {"train_loss": ("train", ACCENT, "o"), "val_loss": ("val", OTHER, "s")}
_SCORES = {"val_average_precision": ("AP", OTHER, "s"), "val_auc": ("AUC", THIRD, "^")}
_RATE = {"learning_rate": ("learning rate", INK, "o")}


def plot_curves(
    history: Sequence[dict[str, Any]], path: Path, *, best_epoch: int | None = None
) -> None:
    """Write a PNG of loss, val scores and learning rate by epoch.

    Args:
        history: One record an epoch, as in ``metrics.jsonl``; what a record lacks is left out.
        path: The PNG, replaced in one atomic step.
        best_epoch: To be marked.
    """
    with house_style():
        save_png(draw_curves(history, best_epoch=best_epoch), path)


def draw_curves(history: Sequence[dict[str, Any]], *, best_epoch: int | None = None) -> Figure:
    """Draw loss, val scores and learning rate by epoch, as ``plot_curves`` writes them."""
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
    for key, (name, colour, marker) in curves.items():
        points = _points(history, key)
        if points:
            # Lines of many epochs need no marks; a single epoch is seen only by its mark.
            size = 4 if len(points) <= 40 else 0
            ax.plot(*zip(*points, strict=True), marker, ls="-", ms=size, color=colour, label=name)
    if not ax.lines:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", va="center")
        ax.set_yticks([])
    last = max((record["epoch"] for record in history), default=1)
    pad = max(0.5, 0.02 * last)
    ax.set(xlabel="epoch", xlim=(1 - pad, last + pad))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _points(history: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return epoch and value wherever there is a finite value."""
    return [
        (record["epoch"], float(record[key]))
        for record in history
        if record.get(key) is not None and math.isfinite(record[key])
    ]
