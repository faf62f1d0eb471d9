"""Figures of an evaluation with one mark per patient."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wsi_idc.core.constants import TITLES
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.plotting.colors import ACCENT, GRAY, OTHER
from wsi_idc.plotting.number_format import interval, number, signed
from wsi_idc.plotting.style import INK, printable, say_none

NUM_NAMED = 5


def marker_areas(patches: NDArray) -> NDArray[np.float64]:
    """Return marker areas in square points that grow with the number of patches."""
    areas: NDArray[np.float64] = 24 + 140 * patches / max(patches.max(initial=1), 1)
    return areas


def patients(evaluation: Evaluation) -> Figure:
    """Draw AUC and Dice of each patient, sorted by value, and name the weakest patients."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 1)
    for ax, name in zip(axes, ("auc", "dice"), strict=True):
        _draw_sorted(ax, evaluation.patients, name, evaluation.patient_summary.get(name))
    axes[1].set_xlabel("patients, weakest first; area of a mark: number of patches")
    return figure


def weakest_first(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Sort the patients that have a value of a metric, the weakest first."""
    known = table[table[name].notna()]
    return known.sort_values([name, "patient"], ignore_index=True)


def _draw_sorted(
    ax: Axes, table: pd.DataFrame, name: str, statistics: Mapping[str, float] | None
) -> None:
    ordered, title = weakest_first(table, name), TITLES[name]
    ax.set_ylabel(title)
    if statistics is None or ordered.empty:
        ax.set_title(f"{title} of each patient")
        say_none(ax, f"no patient has a value of {title}")
        ax.set_xticks([])
        return
    place, values = np.arange(1, len(ordered) + 1), ordered[name].to_numpy()
    is_weak = np.arange(len(ordered)) < min(NUM_NAMED, len(ordered) // 2)
    colors = np.where(is_weak, OTHER, ACCENT)
    areas = marker_areas(ordered["patches"].to_numpy())
    ax.axhline(statistics["mean"], color=GRAY, lw=1, zorder=0)
    if not np.isnan(statistics["low"]):
        ax.axhspan(statistics["low"], statistics["high"], color=GRAY, alpha=0.18, lw=0, zorder=0)
    ax.scatter(place, values, areas, colors, alpha=0.8, edgecolors="white", linewidths=0.5)
    if is_weak.any():
        lines = [
            f"{printable(row['patient'])}  {number(row[name], digits=2)}"
            for row in ordered[is_weak].to_dict("records")
        ]
        text = "\n".join(["weakest:", *lines])
        style: dict[str, Any] = {"ha": "right", "va": "bottom", "color": OTHER, "fontsize": 9}
        ax.text(0.985, 0.06, text, transform=ax.transAxes, **style)
    ax.set(xlim=(0.3, len(ordered) + 0.7), ylim=(max(-0.05, min(values.min() - 0.1, 0.6)), 1.05))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    limits = interval(statistics["low"], statistics["high"])
    mean = f"mean {number(statistics['mean'])}" + (f" ({limits})" if limits else "")
    median = f"median {number(statistics['median'])}"
    num_undefined = len(table) - len(ordered)
    undefined = f"; {num_undefined} without a value" if num_undefined else ""
    ax.set_title(f"{title} of {len(ordered)} patients: {mean}, {median}{undefined}")


def area_fraction(evaluation: Evaluation) -> Figure:
    """Draw the called against the labelled IDC fraction of each patient, and their difference."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    against, difference = figure.subplots(1, 2)
    table, statistics = evaluation.patients, evaluation.patient_summary.get("area_bias", {})
    labelled, called = table["area_true"].to_numpy(), table["area_predicted"].to_numpy()
    areas = marker_areas(table["patches"].to_numpy())
    options = {"alpha": 0.75, "edgecolors": "white", "linewidths": 0.5}
    against.plot([0, 1], [0, 1], ":", color=GRAY)
    against.scatter(labelled, called, areas, ACCENT, **options)
    against.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    against.set(title="IDC fraction of each patient", xlabel="labelled", ylabel="called")
    bias = table["area_bias"].to_numpy()
    difference.axhline(0, ls=":", color=GRAY)
    difference.scatter((labelled + called) / 2, bias, areas, ACCENT, **options)
    _draw_agreement(difference, statistics)
    _name_largest(difference, table)
    reach = 1.25 * max(0.1, np.abs(bias).max(initial=0))
    for limit in ("agreement_low", "agreement_high"):
        reach = max(reach, 1.1 * abs(statistics.get(limit, 0)))
    difference.set(xlim=(-0.03, 1.03), ylim=(-reach, reach))
    difference.set(xlabel="mean of labelled and called", ylabel="called - labelled")
    return figure


def _draw_agreement(ax: Axes, statistics: Mapping[str, float]) -> None:
    """Draw the mean bias and the limits of agreement, if they are defined."""
    if "mean" in statistics:
        ax.axhline(statistics["mean"], color=INK, lw=1.2)
    if "agreement_low" not in statistics:
        ax.set_title("Bland-Altman: too few patients for limits of agreement")
        return
    limits = statistics["agreement_low"], statistics["agreement_high"]
    for limit in limits:
        ax.axhline(limit, color=OTHER, ls="--", lw=1)
    texts = ", ".join(signed(limit) for limit in limits)
    ax.set_title(f"Bias {signed(statistics['mean'])}, limits of agreement {texts}")


def _name_largest(ax: Axes, table: pd.DataFrame) -> None:
    """Name the two patients with the largest differences."""
    order = np.argsort(-table["area_bias"].abs().to_numpy(), kind="stable")
    for row in table.iloc[order[:2]].to_dict("records"):
        if row["area_bias"]:
            point = ((row["area_true"] + row["area_predicted"]) / 2, row["area_bias"])
            name = printable(row["patient"])
            ax.annotate(name, point, (6, 5), textcoords="offset points", fontsize=8)


CHARTS: dict[str, Callable[[Evaluation], Figure]] = {
    function.__name__: function for function in (patients, area_fraction)
}
