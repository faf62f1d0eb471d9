"""What a training leaves for people to read: a line and a point an epoch, curves, samples."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsi_idc.explore.patch_figures import augmented_samples
from wsi_idc.plotting.colors import ACCENT, OTHER, THIRD
from wsi_idc.plotting.style import INK, house_style, save_png
from wsi_idc.training.runs import CURVES, EVENTS, SAMPLES
from wsi_idc.training.state import Training

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


logger = logging.getLogger(__name__)


class RunLogger:
    """Writes ``metrics.jsonl``, TensorBoard events and pictures into a run's folder.

    Use it as a context manager; in a process that is not the writer it does nothing.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._board: Any = None
        if not training.world.is_writer:
            return
        folder, config = training.run.folder, training.config
        if not (folder / SAMPLES).exists():
            augmented_samples(
                training.pack,
                training.rows["train"],
                config.augment,
                seed=config.seed,
                path=folder / SAMPLES,
            )
        self._board = _open_board(training)
        # A killed process may have saved an epoch that it did not live to note.
        for record in training.place.history:
            self._add(record)
        if training.place.history:
            self._write()

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def note(self) -> None:
        """Note the epoch that has just ended."""
        if self._training.world.is_writer:
            self._add(self._training.place.history[-1])
            self._write()

    def _add(self, record: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in record.items():
            # Train and val in one chart: TensorBoard groups by what is before the slash.
            role, _, metric = name.partition("_")
            tag = f"{metric}/{role}" if role in ("train", "val") else name
            self._board.add_scalar(tag, value, record["epoch"])

    def _write(self) -> None:
        run, place = self._training.run, self._training.place
        run.write_history(place.history)
        plot_curves(place.history, run.folder / CURVES, best_epoch=place.best_epoch)
        if self._board is not None:
            self._board.flush()


def _open_board(training: Training) -> Any:
    """Return a TensorBoard writer that goes on after the epochs done, None where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed: no events are written")
        return None
    # What earlier processes noted is noted again, and must not show twice.
    return SummaryWriter(str(training.run.folder / EVENTS), purge_step=1)
