"""Figures of an evaluation. Some figures show all patches together, others show each patient."""

from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from wsi_idc.core.metric_table import HEADLINE_METRICS, METRIC_TABLE, TITLES
from wsi_idc.core.text import count
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.metrics import bootstrap
from wsi_idc.metrics.classification import ECE_BINS, ece_bin, safe_divide
from wsi_idc.plotting.colors import INK, LABEL_COLORS
from wsi_idc.plotting.number_format import interval, number, percent, signed
from wsi_idc.plotting.style import ACCENT, GRAY, GRID, OTHER, printable, say_none

BORDER_TITLES = {
    0: "next to a patch of the other label",
    1: "1 patch between this patch and the other label",
    2: "2 or more patches between, or no other label",
}
# Darker colors are farther from the border, where the label is more certain.
_BORDER_COLORS = {0: "#9ecae1", 1: "#4a90c4", 2: "#08437e"}
# Metrics that can be compared between groups of patches with different prevalence.
_COMPARABLE_METRICS = [
    name
    for name in HEADLINE_METRICS
    if not (METRIC_TABLE[name].depends_on_prevalence or METRIC_TABLE[name].smaller_is_better)
]
_NUM_HISTOGRAM_BINS = 40
_CHANCE_AUC = 0.5  # AUC of random probabilities
NUM_NAMED = 5  # number of patients whose ids a figure shows, from the lowest value
_RESAMPLES_OF_BINS = 500


def draw_row_grid(ax: Axes) -> None:
    """Draw vertical grid lines behind the marks, and hide the tick marks of the y axis."""
    ax.grid(axis="x", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)


def probability_name(evaluation: Evaluation) -> str:
    """Return "smoothed probability" if the final probabilities are smoothed, else "probability"."""
    return evaluation.final.column.replace("probability_smoothed", "smoothed probability")


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix; a cell shows its number of patches and its fraction of the row."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    ax = figure.subplots()
    tp, fp, tn, fn = astuple(evaluation.final.confusion)
    cells = np.array([[tn, fp], [fn, tp]])
    totals = np.broadcast_to(cells.sum(axis=1, keepdims=True), (2, 2))
    fractions = safe_divide(cells.astype(float), totals)
    colormap = LinearSegmentedColormap.from_list("white to blue", ["#ffffff", ACCENT])
    ax.imshow(np.nan_to_num(fractions), cmap=colormap, vmin=0, vmax=1.15)
    outcomes = (("true negatives", "false positives"), ("false negatives", "true positives"))
    for (row, col), num in np.ndenumerate(cells):
        color = "white" if fractions[row, col] > 0.6 else INK
        options: dict[str, Any] = {"ha": "center", "va": "center", "color": color}
        ax.text(col, row - 0.1, f"{num:,}", fontsize=18, **options)
        of_row = percent(float(fractions[row, col]))
        ax.text(col, row + 0.14, f"{of_row} of the row", fontsize=10, **options)
        ax.text(col, row + 0.33, outcomes[row][col], fontsize=9, **options)
    ax.set_xticks([0, 1], ["called non-IDC", "called IDC"])
    ax.set_yticks([0, 1], ["labelled\nnon-IDC", "labelled\nIDC"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    threshold = number(evaluation.final.threshold)
    ax.set_title(f"{probability_name(evaluation).capitalize()} at threshold {threshold}")
    return figure


def roc_and_pr(evaluation: Evaluation) -> Figure:
    """Draw the ROC curve and the PR curve with 95 % bands, and the point at the threshold."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    final, metrics = evaluation.final, evaluation.final.metrics
    titles = [
        f"{TITLES[name]} {_with_interval(metrics[name], *final.intervals[name])}"
        for name in ("auc", "average_precision")
    ]
    roc.set(title=f"ROC: {titles[0]}", xlabel="1 - specificity", ylabel="sensitivity")
    pr.set(title=f"PR: {titles[1]}", xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    if evaluation.bands is None:
        for ax in (roc, pr):
            say_none(ax, "needs patches of both classes")
    else:
        sensitivity, prevalence = metrics["sensitivity"], metrics["prevalence"]
        for ax, band in zip((roc, pr), evaluation.bands, strict=True):
            if not np.isnan(band.low).all():
                options = {"color": ACCENT, "alpha": 0.2, "lw": 0, "label": "95 % over patients"}
                ax.fill_between(band.x, band.low, band.high, **options)
            ax.plot(band.x, band.y, color=ACCENT, linewidth=2, label="all patches")
        roc.plot([0, 1], [0, 1], ":", color=GRAY, label="chance")
        pr.axhline(prevalence, ls=":", color=GRAY, label=f"chance: prevalence {prevalence:.3f}")
        label = f"threshold {number(final.threshold)}"
        point = {"color": OTHER, "ms": 8, "mec": "white", "ls": "", "zorder": 3, "label": label}
        roc.plot(1 - metrics["specificity"], sensitivity, "o", **point)
        pr.plot(sensitivity, metrics["ppv"], "o", **point)
        roc.legend(loc="lower right", frameon=False)
        pr.legend(loc="lower left", frameon=False)
    for ax in (roc, pr):
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure


def _with_interval(value: float, low: float, high: float) -> str:
    limits = interval(low, high)
    return number(value) + (f" ({limits})" if limits else "")


def reliability_bins(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    patient: NDArray,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the mean probability and the fraction of IDC in each of ``ECE_BINS`` bins.

    Args:
        label: Labels (0 or 1), shape (N,).
        probability: Probabilities of IDC, shape (N,).
        patient: Patient ids, shape (N,).
        seed: Seed of the bootstrap.

    Returns:
        One row per bin. Columns: patches (number), probability (mean), idc_share (fraction of
        IDC), low, high (95 % interval of the fraction, from a bootstrap over patients; NaN if
        fewer than two patients have patches in the bin).
    """
    ids, code = np.unique(patient, return_inverse=True)
    cell = code * ECE_BINS + ece_bin(probability)

    def by_patient(values: NDArray | None = None) -> NDArray[np.float64]:
        sums = np.bincount(cell, values, minlength=len(ids) * ECE_BINS)
        return sums.reshape(-1, ECE_BINS).astype(float)

    patches, positive = by_patient(), by_patient(label == 1)
    weights = bootstrap.resample_patients(len(ids), seed=seed, num_resamples=_RESAMPLES_OF_BINS)
    resampled = safe_divide(weights @ positive, weights @ patches)  # (R, ECE_BINS)
    limits = np.array([bootstrap.interval(values) for values in resampled.T])
    limits[(patches > 0).sum(axis=0) < 2] = np.nan
    num = patches.sum(axis=0)
    return pd.DataFrame(
        {
            "patches": num.astype(int),
            "probability": safe_divide(by_patient(probability.astype(float)).sum(axis=0), num),
            "idc_share": safe_divide(positive.sum(axis=0), num),
            "low": limits[:, 0],
            "high": limits[:, 1],
        }
    )


def reliability(evaluation: Evaluation) -> Figure:
    """Draw the observed fraction of IDC against the predicted probability."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    table = evaluation.predictions
    bins = reliability_bins(
        table["label"].to_numpy(),
        table[evaluation.final.column].to_numpy(),
        table["patient"].to_numpy(),
        seed=evaluation.record["seed"],
    )
    filled = bins[bins["patches"] > 0]
    ax.plot([0, 1], [0, 1], ":", color=GRAY, label="perfectly calibrated")
    ax.vlines(filled["probability"], filled["low"], filled["high"], ACCENT, lw=1.5, alpha=0.6)
    ax.plot(filled["probability"], filled["idc_share"], "o-", color=ACCENT, ms=5, label="observed")
    # The temperature calibrates the probabilities before they are smoothed.
    steps = [f"{number(evaluation.ece_uncalibrated)} before calibration"]
    if evaluation.raw is not None:
        steps.insert(0, f"{number(evaluation.raw.metrics['ece'])} before smoothing")
    ax.set_title(f"ECE {number(evaluation.final.metrics['ece'])}; {', '.join(steps)}")
    ax.set(ylabel="fraction of IDC", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    ax.legend(loc="upper left", frameon=False)
    options = {"align": "edge", "color": LABEL_COLORS[0], "ec": "w"}
    edges = np.linspace(0, 1, ECE_BINS + 1)
    counts.bar(edges[:-1], bins["patches"], 1 / ECE_BINS, **options)
    counts.set(xlabel=f"{probability_name(evaluation)} of IDC")
    counts.set(ylabel="patches (log)", yscale="log", ylim=(0.7, 2 * bins["patches"].max()))
    counts.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def probabilities(evaluation: Evaluation) -> Figure:
    """Draw a histogram of the probabilities for each label, and a line at the threshold."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    ax = figure.subplots()
    table, threshold = evaluation.predictions, evaluation.final.threshold
    bins = np.linspace(0, 1, _NUM_HISTOGRAM_BINS + 1).tolist()
    for label, name in ((0, "non-IDC"), (1, "IDC")):
        values = table[evaluation.final.column].to_numpy()[table["label"] == label]
        text = f"labelled {name} ({len(values):,})"
        weights = np.full(len(values), 1 / max(len(values), 1))
        options: dict[str, Any] = {"bins": bins, "weights": weights, "color": LABEL_COLORS[label]}
        ax.hist(values, histtype="stepfilled", alpha=0.55, **options)
        ax.hist(values, histtype="step", linewidth=1.5, label=text, **options)
    ax.axvline(threshold, color=INK, ls="--", label=f"threshold {number(threshold)}")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set(xlim=(0, 1), xlabel=f"{probability_name(evaluation)} of IDC")
    ax.set(ylabel="fraction of the label's patches", title="Probabilities by label")
    # The legend is outside: inside the axes the legend could cover the threshold or a bar.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def border(evaluation: Evaluation) -> Figure:
    """Draw metrics for each distance from the border between patches of different labels."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    ax = figure.subplots()
    place = np.arange(len(_COMPARABLE_METRICS))
    for step, (distance, metric_set) in enumerate(evaluation.by_border.items()):
        values = np.array([metric_set.metrics[name] for name in _COMPARABLE_METRICS])
        limits = np.array([metric_set.intervals[name] for name in _COMPARABLE_METRICS])
        rows, color = place + 0.24 * (step - 1), _BORDER_COLORS[distance]
        patches = count(metric_set.num_patches, "patch", "patches")
        label = f"{BORDER_TITLES[distance]} ({patches})"
        ax.hlines(rows, limits[:, 0], limits[:, 1], color, lw=2.5, alpha=0.7)
        ax.plot(values, rows, "o", color=color, ms=8, label=label)
        for value, y in zip(values, rows, strict=True):
            ax.text(1.04, y, number(value), va="center", fontsize=9, clip_on=False)
    ax.set_yticks(place, [TITLES[name].replace(" ", "\n") for name in _COMPARABLE_METRICS])
    ax.set(xlim=(max(-0.02, min(0.45, ax.get_xlim()[0])), 1.02), ylim=(len(place) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    draw_row_grid(ax)
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    ax.set_title("By distance to the label border")
    return figure


def marker_areas(patches: NDArray) -> NDArray[np.float64]:
    """Return the area of each marker. The area grows with the number of patches."""
    return np.asarray(24 + 140 * patches / max(patches.max(initial=1), 1))


def patients(evaluation: Evaluation) -> Figure:
    """Draw AUC and Dice of each patient, lowest value first; name the patients with low values."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 1)
    for ax, name in zip(axes, ("auc", "dice"), strict=True):
        _draw_sorted(ax, evaluation.patients, name, evaluation.patient_summary.get(name))
    axes[1].set_xlabel("patients, lowest value first; area of a mark: number of patches")
    legends = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
    marks = {label: mark for legend in legends for mark, label in legend}  # each label once
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def weakest_first(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Sort the patients by a metric, the lowest value first; drop patients without a value."""
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
    ax.axhline(statistics["mean"], color=GRAY, lw=1, zorder=0, label="mean of the patients")
    if not np.isnan(statistics["low"]):
        band: dict[str, Any] = {
            "color": GRAY,
            "alpha": 0.18,
            "lw": 0,
            "label": "95 % interval of the mean",
        }
        ax.axhspan(statistics["low"], statistics["high"], zorder=0, **band)
    lowest = 0.0
    if name == "auc":
        lowest = _CHANCE_AUC
        ax.axhline(_CHANCE_AUC, color=GRAY, ls=":", lw=1, zorder=0, label="AUC of chance")
    ax.scatter(place, values, areas, colors, alpha=0.8, edgecolors="white", linewidths=0.5)
    if is_weak.any():
        lines = [
            f"{printable(row['patient'])}  {number(row[name], digits=2)}"
            for row in ordered[is_weak].to_dict("records")
        ]
        text = "\n".join(["weakest:", *lines])
        style: dict[str, Any] = {"ha": "right", "va": "bottom", "color": OTHER, "fontsize": 9}
        ax.text(0.985, 0.1, text, transform=ax.transAxes, **style)
    ax.set(xlim=(0.3, len(ordered) + 0.7), ylim=(min(lowest, values.min()) - 0.04, 1.04))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    mean = _with_interval(*(statistics[key] for key in ("mean", "low", "high")))
    median, num_undefined = number(statistics["median"]), len(table) - len(ordered)
    undefined = f"; {num_undefined} without a value" if num_undefined else ""
    of_patients = count(len(ordered), "patient")
    ax.set_title(f"{title} of {of_patients}: mean {mean}, median {median}{undefined}")


def area_fraction(evaluation: Evaluation) -> Figure:
    """Draw the predicted and the labelled IDC fraction of each patient, and their difference."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    against, difference = figure.subplots(1, 2)
    table, statistics = evaluation.patients, evaluation.patient_summary.get("area_bias", {})
    labelled, called = table["area_true"].to_numpy(), table["area_predicted"].to_numpy()
    areas = marker_areas(table["patches"].to_numpy())
    options = {"alpha": 0.75, "edgecolors": "white", "linewidths": 0.5}
    against.plot([0, 1], [0, 1], ":", color=GRAY, label="called = labelled")
    against.scatter(labelled, called, areas, ACCENT, **options)
    against.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    against.set(title="IDC fraction of each patient", xlabel="labelled", ylabel="called")
    bias = table["area_bias"].to_numpy()
    difference.axhline(0, ls=":", color=GRAY)  # the line "called = labelled" of the left chart
    difference.scatter((labelled + called) / 2, bias, areas, ACCENT, **options)
    limits = [value for name, value in statistics.items() if name.startswith("agreement_")]
    if "mean" in statistics:
        difference.axhline(statistics["mean"], color=INK, lw=1.2, label="bias: mean difference")
    for limit, label in zip(limits, ("limits of agreement", None), strict=False):
        difference.axhline(limit, color=OTHER, ls="--", lw=1, label=label)
    title = "Bland-Altman: too few patients for limits of agreement"
    if limits:
        texts = ", ".join(map(signed, limits))
        title = f"Bias {signed(statistics['mean'])}, limits of agreement {texts}"
    # The ids of the two patients with the largest differences are shown.
    order = np.argsort(-np.abs(bias), kind="stable")
    for row in table.iloc[order[:2]].to_dict("records"):
        if row["area_bias"]:
            point = ((row["area_true"] + row["area_predicted"]) / 2, row["area_bias"])
            name = printable(row["patient"])
            difference.annotate(name, point, (6, 5), textcoords="offset points", fontsize=8)
    reach = max(0.125, 1.25 * np.abs(bias).max(initial=0), *(1.1 * abs(x) for x in limits))
    difference.set(xlim=(-0.03, 1.03), ylim=(-reach, reach), title=title)
    difference.set(xlabel="mean of labelled and called", ylabel="called - labelled")
    title = "Area of a mark: number of patches"
    figure.legend(loc="outside lower center", ncols=3, title=title, frameon=False)
    return figure


_DRAW = (confusion_matrix, roc_and_pr, reliability, probabilities, border, patients, area_fraction)
CHARTS: dict[str, Callable[[Evaluation], Figure]] = {draw.__name__: draw for draw in _DRAW}
