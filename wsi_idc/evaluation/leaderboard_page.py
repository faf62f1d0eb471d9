"""A leaderboard as a page: measured evaluations ranked, published results set apart."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wsi_idc.core.metric_table import HEADLINE_METRICS, SMALLER_IS_BETTER, TITLES
from wsi_idc.evaluation.charts import write_beside
from wsi_idc.evaluation.leaderboard import MEASURED, PUBLISHED
from wsi_idc.metrics import classification as measure
from wsi_idc.plotting.colors import ACCENT, GREY, GRID
from wsi_idc.plotting.html import write_figures, write_page
from wsi_idc.plotting.number_format import number
from wsi_idc.plotting.style import printable, say_none

_LONGEST_NAME = 44


def write_leaderboard_page(table: pd.DataFrame, out: Path, *, is_fair: bool) -> None:
    """Write leaderboard.html, which needs no other file, and its figure into the folder ``out``.

    Args:
        table: As ``leaderboard`` gives it.
        out: Where to.
        is_fair: Whether all measured ones are of the same patches.
    """
    rank_by = ranked_by(table)
    uris = write_figures({"leaderboard": partial(leaderboard_chart, table)}, out)
    rows = measure.records(table)
    measured = [row for row in rows if row["source"] == MEASURED]
    write_page(
        out / "leaderboard.html",
        "evaluation/templates/leaderboard.html",
        rank_by=rank_by,
        smaller_is_better=rank_by in SMALLER_IS_BETTER,
        metrics=[name for name in HEADLINE_METRICS if name != rank_by],
        measured=measured,
        published=[row for row in rows if row["source"] == PUBLISHED],
        is_fair=is_fair,
        figure={
            "uri": uris["leaderboard"],
            "title": f"By {TITLES[rank_by]}",
            "caption": "Lines: 95 % over patients. Where two overlap, only wsi-idc compare tells "
            "whether one is better. Hollow: published, other patients, for context only.",
        },
    )


def ranked_by(table: pd.DataFrame) -> str:
    """Return the metric that a leaderboard is sorted by: the one with an interval."""
    name = next(str(name) for name in table.columns if str(name).endswith("_low"))
    return name.removesuffix("_low")


def leaderboard_chart(table: pd.DataFrame) -> Figure:
    """Draw the metric that ranks, of each row that has it."""
    metric = ranked_by(table)
    known = table[table[metric].notna()]
    figure = Figure(figsize=(9, 1.5 + 0.36 * max(len(known), 1)), layout="constrained")
    ax = figure.subplots()
    ax.set_title(TITLES[metric])
    if known.empty:
        say_none(ax, f"none has a value of {TITLES[metric]}")
        return figure
    place, values = np.arange(len(known)), known[metric].to_numpy(float)
    ours = (known["source"] == MEASURED).to_numpy()
    low, high = (known[f"{metric}_{end}"].to_numpy(float) for end in ("low", "high"))
    ax.hlines(place, low, high, ACCENT, lw=2.5, alpha=0.6)
    ax.plot(values[ours], place[ours], "o", color=ACCENT, ms=8)
    ax.plot(values[~ours], place[~ours], "o", mfc="white", mec=GREY, ms=8)
    if ours.any() and not ours.all():
        ax.axhline(ours.sum() - 0.5, color=GREY, lw=0.8, ls=":")
    write_beside(ax, place, [number(value) for value in values])
    names = [printable(name, longest=_LONGEST_NAME) for name in known["name"]]
    ax.set_yticks(place, names)
    for tick, is_ours in zip(ax.get_yticklabels(), ours, strict=True):
        tick.set(color="black" if is_ours else GREY, style="normal" if is_ours else "italic")
    ax.set_ylim(len(known) - 0.4, -0.6)
    ax.margins(x=0.08)
    ax.grid(axis="x", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    return figure
