"""Write the page that compares two evaluations, and the page of a leaderboard."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsi_idc.core.metric_table import HEADLINE_METRICS, SMALLER_IS_BETTER, TITLES
from wsi_idc.core.text import count
from wsi_idc.evaluation.charts import draw_row_grid, marker_areas
from wsi_idc.evaluation.compare import MEASURED, PUBLISHED, UNRANKED, Comparison
from wsi_idc.metrics.bootstrap import MIN_PATIENTS
from wsi_idc.metrics.classification import records
from wsi_idc.plotting.html import write_figures, write_page
from wsi_idc.plotting.number_format import number, signed
from wsi_idc.plotting.style import ACCENT, GRAY, OTHER, printable, say_none

_NUM_NAMED = 3
_LONGEST_NAME = 44
# Name of each metric in the figures and tables of a comparison.
_NAMES = {
    name: title + (" (smaller is better)" if name in SMALLER_IS_BETTER else "")
    for name, title in TITLES.items()
}


def write_comparison_page(comparison: Comparison, out: Path, *, name_a: str, name_b: str) -> None:
    """Write the self-contained comparison.html and its figures into the folder ``out``.

    ``name_a`` and ``name_b`` are the names of the two evaluations on the page.
    """
    drawings = {draw.__name__: partial(draw, comparison) for draw in (differences, paired_patients)}
    metrics = records(comparison.metrics)
    patients = count(comparison.num_patients, "patient")
    patches = count(comparison.num_patches, "patch", "patches")
    write_page(
        out / "comparison.html",
        "evaluation/templates/comparison.html",
        names={"a": name_a, "b": name_b},
        thresholds={"a": comparison.threshold_a, "b": comparison.threshold_b},
        facts=f"{patients} · {patches} · the same for both",
        notes=comparison.notes,
        min_patients=MIN_PATIENTS,
        better={
            side: [TITLES[row["metric"]] for row in metrics if row["better"] == side]
            for side in ("a", "b", "")
        },
        tallies={TITLES[name]: tally(comparison.patients, name) for name in ("auc", "dice")},
        metrics=metrics,
        metric_names=_NAMES,
        patients=records(comparison.patients),
        uris=write_figures(drawings, out),
    )


def tally(patients: pd.DataFrame, name: str) -> dict[str, int]:
    """Count the patients with each result of the comparison of A and B by the metric ``name``.

    The keys are "a" (A has the larger value), "b" (B has the larger value), "same" and "none" (A or
    B has no value).
    """
    difference = patients[f"{name}_difference"].to_numpy(float)
    return {
        "a": int((difference < 0).sum()),
        "b": int((difference > 0).sum()),
        "same": int((difference == 0).sum()),
        "none": int(np.isnan(difference).sum()),
    }


def differences(comparison: Comparison) -> Figure:
    """Draw the difference b - a of each metric, and the 95 % interval of the difference."""
    table = comparison.metrics
    figure = Figure(figsize=(9, 1.3 + 0.34 * len(table)), layout="constrained")
    ax = figure.subplots()
    ax.set_title("B \N{MINUS SIGN} A, with 95 % interval over patients")
    place, values = np.arange(len(table)), table["difference"].to_numpy(float)
    if np.isnan(values).all():
        say_none(ax, "no metric has a value")
        return figure
    colors = table["better"].map({"a": OTHER, "b": ACCENT}).fillna(GRAY).to_numpy()
    ax.axvline(0, color="black", lw=0.8)
    ax.hlines(place, table["low"], table["high"], colors, lw=2.5, alpha=0.6)
    ax.scatter(values, place, 60, colors, zorder=3)
    _annotate_right(ax, place, [signed(value) for value in values])
    ax.set_yticks(place, [_NAMES[name] for name in table["metric"]])
    for color, text in ((ACCENT, "B better"), (OTHER, "A better"), (GRAY, "may be chance")):
        ax.plot([], [], "o", color=color, label=text)
    reach = np.nanmax(np.abs(table[["difference", "low", "high"]].to_numpy(float)), initial=0.001)
    ax.set(xlim=(-1.1 * reach, 1.1 * reach), ylim=(len(table) - 0.4, -0.6))
    draw_row_grid(ax)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def paired_patients(comparison: Comparison) -> Figure:
    """Draw AUC and Dice of each patient: x is the value with A, and y is the value with B."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    for ax, name in zip(figure.subplots(1, 2), ("auc", "dice"), strict=True):
        _draw_pairs(ax, comparison.patients, name)
    return figure


def _draw_pairs(ax: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw one mark per patient; name the patients with the largest differences between A and B."""
    known = table[table[f"{name}_difference"].notna()]
    counts, title = tally(table, name), TITLES[name]
    ax.set(xlabel=f"{title} with A", ylabel=f"{title} with B", aspect="equal")
    ax.set_title(
        f"{title}: larger with B {counts['b']}, with A {counts['a']}, same {counts['same']}"
    )
    if known.empty:
        say_none(ax, f"no patient has a value of {title}")
        return
    a, b = known[f"{name}_a"].to_numpy(float), known[f"{name}_b"].to_numpy(float)
    colors = np.where(b > a, ACCENT, np.where(b < a, OTHER, GRAY))
    areas = marker_areas(known["patches"].to_numpy())
    ax.plot([0, 1], [0, 1], ":", color=GRAY, zorder=0)
    ax.scatter(a, b, areas, colors, alpha=0.75, edgecolors="white", linewidths=0.5)
    for row in np.argsort(-np.abs(b - a), kind="stable")[:_NUM_NAMED]:
        if a[row] != b[row]:
            # Write the id on the side of the mark that is farther from the diagonal.
            sides = ((-6, 4), "right", "bottom") if b[row] > a[row] else ((6, -4), "left", "top")
            offset, ha, va = sides
            name, point = printable(known["patient"].iloc[row]), (a[row], b[row])
            ax.annotate(name, point, offset, textcoords="offset points", fontsize=8, ha=ha, va=va)
    low = max(-0.03, min(a.min(), b.min()) - 0.08)
    ax.set(xlim=(low, 1.03), ylim=(low, 1.03))


def write_leaderboard_page(table: pd.DataFrame, out: Path) -> None:
    """Write the self-contained leaderboard.html and its figure into the folder ``out``.

    ``table`` is the result of ``leaderboard``.
    """
    rank_by, rows = ranking_metric(table), records(table)
    write_page(
        out / "leaderboard.html",
        "evaluation/templates/leaderboard.html",
        rank_by=rank_by,
        smaller_is_better=rank_by in SMALLER_IS_BETTER,
        metrics=[name for name in HEADLINE_METRICS if name != rank_by],
        rows={
            source: [row for row in rows if row["source"] == source]
            for source in (MEASURED, UNRANKED, PUBLISHED)
        },
        uris=write_figures({"leaderboard": partial(leaderboard_chart, table)}, out),
    )


def ranking_metric(table: pd.DataFrame) -> str:
    """Return the metric that sorts a leaderboard; only this metric has a confidence interval."""
    return next(name.removesuffix("_low") for name in map(str, table) if name.endswith("_low"))


def leaderboard_chart(table: pd.DataFrame) -> Figure:
    """Draw the metric that sorts the leaderboard; leave out rows in which this metric is NaN."""
    metric = ranking_metric(table)
    known = table[table[metric].notna()]
    figure = Figure(figsize=(9, 1.5 + 0.36 * max(len(known), 1)), layout="constrained")
    ax = figure.subplots()
    ax.set_title(TITLES[metric])
    if known.empty:
        say_none(ax, f"no row has a value of {TITLES[metric]}")
        return figure
    place, values = np.arange(len(known)), known[metric].to_numpy(float)
    source = known["source"].to_numpy()
    is_measured = source != PUBLISHED
    low, high = (known[f"{metric}_{end}"].to_numpy(float) for end in ("low", "high"))
    ax.hlines(place, low, high, ACCENT, lw=2.5, alpha=0.6)
    ax.plot(values[is_measured], place[is_measured], "o", color=ACCENT, ms=8)
    ax.plot(values[~is_measured], place[~is_measured], "o", mfc="white", mec=GRAY, ms=8)
    for start in np.flatnonzero(source[1:] != source[:-1]):
        ax.axhline(start + 0.5, color=GRAY, lw=0.8, ls=":")
    _annotate_right(ax, place, [number(value) for value in values])
    ax.set_yticks(place, [printable(name, longest=_LONGEST_NAME) for name in known["name"]])
    for tick, measured in zip(ax.get_yticklabels(), is_measured, strict=True):
        tick.set(color="black" if measured else GRAY, style="normal" if measured else "italic")
    ax.set_ylim(len(known) - 0.4, -0.6)
    ax.margins(x=0.08)
    draw_row_grid(ax)
    return figure


def _annotate_right(ax: Axes, places: Iterable[float], texts: Iterable[str]) -> None:
    """Write each text to the right of the axes. ``places`` are the y coordinates of the texts."""
    units: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    for y, text in zip(places, texts, strict=True):
        ax.annotate(text, (1, y), (6, 0), va="center", fontsize=9, **units)
