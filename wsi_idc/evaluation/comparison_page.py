"""Page of a comparison: differences with intervals, patients in pairs."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsi_idc.core.constants import SMALLER_IS_BETTER, TITLES
from wsi_idc.evaluation.charts import annotate_right, draw_row_grid
from wsi_idc.evaluation.compare import MIN_PATIENTS, Comparison
from wsi_idc.evaluation.patient_charts import marker_areas
from wsi_idc.metrics.classification import records
from wsi_idc.plotting.colors import ACCENT, GRAY, OTHER
from wsi_idc.plotting.html import write_figures, write_page
from wsi_idc.plotting.number_format import count, signed
from wsi_idc.plotting.style import printable, say_none

_NUM_NAMED = 3
# Name of each metric in figures and tables.
_NAMES = {
    name: title + (" (smaller is better)" if name in SMALLER_IS_BETTER else "")
    for name, title in TITLES.items()
}


def write_comparison_page(comparison: Comparison, out: Path, *, name_a: str, name_b: str) -> None:
    """Write the self-contained comparison.html and its figures into the folder ``out``.

    Args:
        comparison: The comparison.
        out: The folder.
        name_a: Name of the first evaluation.
        name_b: Name of the second evaluation.
    """
    drawings = {
        "differences": partial(differences, comparison),
        "paired_patients": partial(paired_patients, comparison),
    }
    uris = write_figures(drawings, out)
    metrics = records(comparison.metrics)
    patients = count(comparison.num_patients, "patient", "patients")
    patches = count(comparison.num_patches, "patch", "patches")
    write_page(
        out / "comparison.html",
        "evaluation/templates/comparison.html",
        names={"a": name_a, "b": name_b},
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
        uris=uris,
    )


def tally(patients: pd.DataFrame, name: str) -> dict[str, int]:
    """Count the patients whose metric is larger with a, larger with b, equal, or undefined."""
    difference = patients[f"{name}_difference"].to_numpy(float)
    return {
        "a": int((difference < 0).sum()),
        "b": int((difference > 0).sum()),
        "same": int((difference == 0).sum()),
        "none": int(np.isnan(difference).sum()),
    }


def differences(comparison: Comparison) -> Figure:
    """Draw the difference b - a of each metric with its interval."""
    table = comparison.metrics
    figure = Figure(figsize=(9, 1.3 + 0.34 * len(table)), layout="constrained")
    ax = figure.subplots()
    ax.set_title("B \N{MINUS SIGN} A; line: 95 % over patients")
    place, values = np.arange(len(table)), table["difference"].to_numpy(float)
    if np.isnan(values).all():
        say_none(ax, "no metric has a value")
        return figure
    colors = table["better"].map({"a": OTHER, "b": ACCENT}).fillna(GRAY).to_numpy()
    ax.axvline(0, color="black", lw=0.8)
    ax.hlines(place, table["low"], table["high"], colors, lw=2.5, alpha=0.6)
    ax.scatter(values, place, 60, colors, zorder=3)
    annotate_right(ax, place, [signed(value) for value in values])
    ax.set_yticks(place, [_NAMES[name] for name in table["metric"]])
    for color, text in ((ACCENT, "B better"), (OTHER, "A better"), (GRAY, "may be chance")):
        ax.plot([], [], "o", color=color, label=text)
    reach = np.nanmax(np.abs(table[["difference", "low", "high"]].to_numpy(float)), initial=0.001)
    ax.set(xlim=(-1.1 * reach, 1.1 * reach), ylim=(len(table) - 0.4, -0.6))
    draw_row_grid(ax)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def paired_patients(comparison: Comparison) -> Figure:
    """Draw AUC and Dice of each patient, b against a."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    for ax, name in zip(figure.subplots(1, 2), ("auc", "dice"), strict=True):
        _draw_pairs(ax, comparison.patients, name)
    return figure


def _draw_pairs(ax: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw one mark per patient and name the patients with the largest differences."""
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
            # On the side away from the diagonal, where there is room.
            is_above = b[row] > a[row]
            ax.annotate(
                printable(known["patient"].iloc[row]),
                (a[row], b[row]),
                (-6, 4) if is_above else (6, -4),
                textcoords="offset points",
                ha="right" if is_above else "left",
                va="bottom" if is_above else "top",
                fontsize=8,
            )
    low = max(-0.03, min(a.min(), b.min()) - 0.08)
    ax.set(xlim=(low, 1.03), ylim=(low, 1.03))
