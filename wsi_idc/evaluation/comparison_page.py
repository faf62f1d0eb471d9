"""A comparison of two evaluations as a page: differences with intervals, patients in pairs."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsi_idc.core.metric_table import SMALLER_IS_BETTER, TITLES
from wsi_idc.evaluation.charts import write_beside
from wsi_idc.evaluation.compare import Comparison
from wsi_idc.evaluation.patient_charts import marker_areas
from wsi_idc.metrics import classification as measure
from wsi_idc.plotting.colors import ACCENT, GREY, GRID, OTHER
from wsi_idc.plotting.html import write_figures, write_page
from wsi_idc.plotting.number_format import count, signed
from wsi_idc.plotting.style import printable, say_none

_NUM_NAMED = 3


def write_comparison_page(comparison: Comparison, out: Path, *, name_a: str, name_b: str) -> None:
    """Write comparison.html, which needs no other file, and its figures into the folder ``out``.

    Args:
        comparison: What it shows.
        out: Where to.
        name_a: What the first is called.
        name_b: What the second is called.
    """
    drawings = {
        "differences": partial(differences, comparison),
        "paired_patients": partial(paired_patients, comparison),
    }
    uris = write_figures(drawings, out)
    metrics = [
        row | {"smaller": row["metric"] in SMALLER_IS_BETTER}
        for row in measure.records(comparison.metrics)
    ]
    names = {"a": name_a, "b": name_b}
    write_page(
        out / "comparison.html",
        "evaluation/templates/comparison.html",
        name=names,
        facts=f"{count(comparison.num_patients, 'patient', 'patients')} · "
        f"{count(comparison.num_patches, 'patch', 'patches')} · the same ones for both",
        notes=comparison.notes,
        verdicts={
            which: [TITLES[row["metric"]] for row in metrics if row["better"] == which]
            for which in names
        },
        open=[TITLES[row["metric"]] for row in metrics if not row["better"]],
        tallies=[(TITLES[name], tally(comparison.patients, name)) for name in ("auc", "dice")],
        metrics=metrics,
        patients=measure.records(comparison.patients),
        uris=uris,
    )


def tally(patients: pd.DataFrame, name: str) -> dict[str, int]:
    """Return how many patients have the larger value with a, with b, the same, or none."""
    difference = patients[f"{name}_difference"].to_numpy(float)
    return {
        "a": int((difference < 0).sum()),
        "b": int((difference > 0).sum()),
        "same": int((difference == 0).sum()),
        "none": int(np.isnan(difference).sum()),
    }


def differences(comparison: Comparison) -> Figure:
    """Draw by how much b is larger in each metric, with the interval of the difference."""
    table = comparison.metrics
    figure = Figure(figsize=(9, 1.3 + 0.34 * len(table)), layout="constrained")
    ax = figure.subplots()
    ax.set_title("B \N{MINUS SIGN} A; line: 95 % over patients")
    place, values = np.arange(len(table)), table["difference"].to_numpy(float)
    if np.isnan(values).all():
        say_none(ax, "no metric has a value")
        return figure
    colours = table["better"].map({"a": OTHER, "b": ACCENT}).fillna(GREY).to_numpy()
    ax.axvline(0, color="black", lw=0.8)
    ax.hlines(place, table["low"], table["high"], colours, lw=2.5, alpha=0.6)
    ax.scatter(values, place, 60, colours, zorder=3)
    write_beside(ax, place, [signed(value) for value in values])
    ax.set_yticks(place, [_metric_name(name) for name in table["metric"]])
    for colour, text in ((ACCENT, "B better"), (OTHER, "A better"), (GREY, "may be chance")):
        ax.plot([], [], "o", color=colour, label=text)
    reach = np.nanmax(np.abs(table[["difference", "low", "high"]].to_numpy(float)), initial=0.001)
    ax.set(xlim=(-1.1 * reach, 1.1 * reach), ylim=(len(table) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _metric_name(name: str) -> str:
    smaller = " (smaller is better)" if name in SMALLER_IS_BETTER else ""
    return TITLES[name] + smaller


def paired_patients(comparison: Comparison) -> Figure:
    """Draw AUC and Dice of each patient, b against a."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    for ax, name in zip(figure.subplots(1, 2), ("auc", "dice"), strict=True):
        _draw_pairs(ax, comparison.patients, name)
    return figure


def _draw_pairs(ax: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw one figure of the patients with b over a, the largest differences named."""
    known = table[table[f"{name}_difference"].notna()]
    found = tally(table, name)
    ax.set(xlabel=f"{TITLES[name]} with A", ylabel=f"{TITLES[name]} with B", aspect="equal")
    ax.set_title(
        f"{TITLES[name]}: larger with B {found['b']}, with A {found['a']}, same {found['same']}"
    )
    if known.empty:
        say_none(ax, f"no patient has a value of {TITLES[name]}")
        return
    a, b = known[f"{name}_a"].to_numpy(float), known[f"{name}_b"].to_numpy(float)
    colours = np.where(b > a, ACCENT, np.where(b < a, OTHER, GREY))
    areas = marker_areas(known["patches"].to_numpy())
    ax.plot([0, 1], [0, 1], ":", color=GREY, zorder=0)
    ax.scatter(a, b, areas, colours, alpha=0.75, edgecolors="white", linewidths=0.5)
    for row in np.argsort(-np.abs(b - a), kind="stable")[:_NUM_NAMED]:
        if a[row] != b[row]:
            # Away from the diagonal, where it is empty.
            left = b[row] > a[row]
            ax.annotate(
                printable(known["patient"].iloc[row]),
                (a[row], b[row]),
                (-6 if left else 6, 4 if left else -4),
                textcoords="offset points",
                ha="right" if left else "left",
                va="bottom" if left else "top",
                fontsize=8,
            )
    low = max(-0.03, min(a.min(), b.min()) - 0.08)
    ax.set(xlim=(low, 1.03), ylim=(low, 1.03))
