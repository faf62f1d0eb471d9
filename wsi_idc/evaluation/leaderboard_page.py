"""Page of a leaderboard: evaluations ranked, published results below."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wsi_idc.core.constants import HEADLINE_METRICS, SMALLER_IS_BETTER, TITLES
from wsi_idc.evaluation.charts import annotate_right, draw_row_grid
from wsi_idc.evaluation.leaderboard import MEASURED, PUBLISHED
from wsi_idc.metrics.classification import records
from wsi_idc.plotting.colors import ACCENT, GRAY
from wsi_idc.plotting.html import write_figures, write_page
from wsi_idc.plotting.number_format import number
from wsi_idc.plotting.style import printable, say_none

_LONGEST_NAME = 44


def write_leaderboard_page(table: pd.DataFrame, out: Path, *, is_fair: bool) -> None:
    """Write the self-contained leaderboard.html and its figure into the folder ``out``.

    Args:
        table: The table that ``leaderboard`` returns.
        out: The folder.
        is_fair: Whether all evaluations are of the same patches.
    """
    rank_by, rows = ranking_metric(table), records(table)
    write_page(
        out / "leaderboard.html",
        "evaluation/templates/leaderboard.html",
        rank_by=rank_by,
        smaller_is_better=rank_by in SMALLER_IS_BETTER,
        metrics=[name for name in HEADLINE_METRICS if name != rank_by],
        measured=[row for row in rows if row["source"] == MEASURED],
        published=[row for row in rows if row["source"] == PUBLISHED],
        is_fair=is_fair,
        uris=write_figures({"leaderboard": partial(leaderboard_chart, table)}, out),
    )


def ranking_metric(table: pd.DataFrame) -> str:
    """Return the metric that sorts a leaderboard: the one with an interval."""
    name = next(str(name) for name in table.columns if str(name).endswith("_low"))
    return name.removesuffix("_low")


def leaderboard_chart(table: pd.DataFrame) -> Figure:
    """Draw the metric that sorts the leaderboard, for each row that has a value."""
    metric = ranking_metric(table)
    known = table[table[metric].notna()]
    figure = Figure(figsize=(9, 1.5 + 0.36 * max(len(known), 1)), layout="constrained")
    ax = figure.subplots()
    ax.set_title(TITLES[metric])
    if known.empty:
        say_none(ax, f"none has a value of {TITLES[metric]}")
        return figure
    place, values = np.arange(len(known)), known[metric].to_numpy(float)
    is_measured = (known["source"] == MEASURED).to_numpy()
    low, high = (known[f"{metric}_{end}"].to_numpy(float) for end in ("low", "high"))
    ax.hlines(place, low, high, ACCENT, lw=2.5, alpha=0.6)
    ax.plot(values[is_measured], place[is_measured], "o", color=ACCENT, ms=8)
    ax.plot(values[~is_measured], place[~is_measured], "o", mfc="white", mec=GRAY, ms=8)
    if is_measured.any() and not is_measured.all():
        ax.axhline(is_measured.sum() - 0.5, color=GRAY, lw=0.8, ls=":")
    annotate_right(ax, place, [number(value) for value in values])
    ax.set_yticks(place, [printable(name, longest=_LONGEST_NAME) for name in known["name"]])
    for tick, measured in zip(ax.get_yticklabels(), is_measured, strict=True):
        tick.set(color="black" if measured else GRAY, style="normal" if measured else "italic")
    ax.set_ylim(len(known) - 0.4, -0.6)
    ax.margins(x=0.08)
    draw_row_grid(ax)
    return figure
