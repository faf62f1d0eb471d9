"""Figures of an evaluation."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from wsi_idc.core.metric_table import TITLES
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.explore.charts import COLOURS
from wsi_idc.metrics.bootstrap import Band, interval, resample_patients
from wsi_idc.metrics.classification import ECE_BINS, ece_bin, safe_divide
from wsi_idc.plotting.colors import ACCENT, GREY, GRID, OTHER
from wsi_idc.plotting.number_format import count, number, percent
from wsi_idc.plotting.number_format import interval as interval_in_words
from wsi_idc.plotting.style import INK, say_none

BORDER_TITLES = {
    0: "next to a patch of the other label",
    1: "1 patch between",
    2: "2 or more between, or no other label",
}
# Light to dark: the further from the border, the surer is the label.
_BORDER_COLOURS = {0: "#9ecae1", 1: "#4a90c4", 2: "#08437e"}
# These do not depend on how common IDC is, so patches at any distance can be compared by them.
_BORDER_METRICS = ("auc", "balanced_accuracy", "sensitivity", "specificity")
_NUM_HISTOGRAM_BINS = 40
_RESAMPLES_OF_BINS = 500
_NEEDS_BOTH = "needs patches of both classes"


def write_beside(ax: Axes, places: Iterable[float], texts: Iterable[str]) -> None:
    """Write a text right of the axes at each of the places along y."""
    for y, text in zip(places, texts, strict=True):
        ax.annotate(
            text,
            (1, y),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )


def in_words(evaluation: Evaluation) -> str:
    """Return what the judged probabilities are called."""
    return evaluation.judged.column.replace("probability_smoothed", "smoothed probability")


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw the patches by label and call, and their share of the label's patches."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    ax = figure.subplots()
    counts = evaluation.judged.confusion
    cells = np.array(
        [
            [counts.true_negative, counts.false_positive],
            [counts.false_negative, counts.true_positive],
        ]
    )
    shares = safe_divide(
        cells.astype(float), np.broadcast_to(cells.sum(axis=1, keepdims=True), (2, 2))
    )
    colours = LinearSegmentedColormap.from_list("white to blue", ["#ffffff", ACCENT])
    ax.imshow(np.nan_to_num(shares), cmap=colours, vmin=0, vmax=1.15)
    outcomes = (("true negatives", "false positives"), ("false negatives", "true positives"))
    for (row, col), num in np.ndenumerate(cells):
        colour = "white" if shares[row, col] > 0.6 else INK
        where: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        ax.text(col, row - 0.1, f"{num:,}", fontsize=18, **where)
        of_row = percent(float(shares[row, col]))
        ax.text(col, row + 0.14, f"{of_row} of the row", fontsize=10, **where)
        ax.text(col, row + 0.33, outcomes[row][col], fontsize=9, **where)
    ax.set_xticks([0, 1], ["called non-IDC", "called IDC"])
    ax.set_yticks([0, 1], ["labelled\nnon-IDC", "labelled\nIDC"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(f"{in_words(evaluation).capitalize()} at threshold {_threshold(evaluation)}")
    return figure


def roc_and_pr(evaluation: Evaluation) -> Figure:
    """Draw the ROC and the precision-recall curve with their bands and the operating point."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    metrics = evaluation.judged.metrics
    titles = [f"{TITLES[name]} {_with_interval(evaluation, name)}" for name in _AREAS]
    roc.set(title=f"ROC: {titles[0]}", xlabel="1 - specificity", ylabel="sensitivity")
    pr.set(title=f"PR: {titles[1]}", xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    if evaluation.bands is None:
        for ax in (roc, pr):
            say_none(ax, _NEEDS_BOTH)
    else:
        sensitivity, prevalence = metrics["sensitivity"], metrics["prevalence"]
        _draw_band(roc, evaluation.bands[0])
        _draw_band(pr, evaluation.bands[1])
        roc.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
        pr.axhline(prevalence, ls=":", color=GREY, label=f"chance: prevalence {prevalence:.3f}")
        name = f"threshold {_threshold(evaluation)}"
        point = {"color": OTHER, "ms": 8, "mec": "white", "ls": "", "zorder": 3, "label": name}
        roc.plot(1 - metrics["specificity"], sensitivity, "o", **point)
        pr.plot(sensitivity, metrics["ppv"], "o", **point)
        roc.legend(loc="lower right", frameon=False)
        pr.legend(loc="lower left", frameon=False)
    for ax in (roc, pr):
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure


_AREAS = ("auc", "average_precision")


def _draw_band(ax: Axes, band: Band) -> None:
    if not np.isnan(band.low).all():
        ax.fill_between(
            band.x, band.low, band.high, color=ACCENT, alpha=0.2, lw=0, label="95 % over patients"
        )
    ax.plot(band.x, band.y, color=ACCENT, linewidth=2, label="all patches")


def reliability_bins(
    label: NDArray[np.integer],
    probability: NDArray[np.floating],
    patient: NDArray,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Return, a row each of the ``ECE_BINS`` bins, what the probabilities say and what is.

    Columns: patches, probability (their mean), idc_share, low, high (95 % interval of the share
    by bootstrap over patients, NaN where the bin has patches of one patient only).

    Args:
        label: 0 or 1, shape (N,).
        probability: Of IDC, shape (N,).
        patient: Of each patch, shape (N,).
        seed: Of the bootstrap.
    """
    ids, code = np.unique(patient, return_inverse=True)
    place = code * ECE_BINS + ece_bin(probability)

    def by_patient(values: NDArray | None = None) -> NDArray[np.float64]:
        sums = np.bincount(place, values, minlength=len(ids) * ECE_BINS)
        return sums.reshape(-1, ECE_BINS).astype(float)

    patches, positive = by_patient(), by_patient(label == 1)
    weights = resample_patients(len(ids), seed=seed, num_resamples=_RESAMPLES_OF_BINS)
    resampled = safe_divide(weights @ positive, weights @ patches)  # (R, ECE_BINS)
    limits = np.array([interval(values) for values in resampled.T])
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
    """Draw how often a patch is IDC against how probable it was said to be."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    table = evaluation.predictions
    bins = reliability_bins(
        table["label"].to_numpy(),
        table[evaluation.judged.column].to_numpy(),
        table["patient"].to_numpy(),
        seed=evaluation.record["seed"],
    )
    some = bins[bins["patches"] > 0]
    ax.plot([0, 1], [0, 1], ":", color=GREY, label="perfectly calibrated")
    ax.vlines(some["probability"], some["low"], some["high"], ACCENT, lw=1.5, alpha=0.6)
    ax.plot(some["probability"], some["idc_share"], "o-", color=ACCENT, ms=5, label="observed")
    # The temperature is of the probabilities before they are smoothed.
    raw, title = evaluation.raw, f"ECE {number(evaluation.judged.metrics['ece'])}"
    before = f"{number(evaluation.ece_uncalibrated)} before calibration"
    unsmoothed = "" if raw is None else f"{number(raw.metrics['ece'])} before smoothing, "
    ax.set_title(f"{title}; {unsmoothed}{before}")
    ax.set(ylabel="share that is IDC", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    ax.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    counts.bar(edges[:-1], bins["patches"], 1 / ECE_BINS, align="edge", color=COLOURS[0], ec="w")
    counts.set(xlabel=f"{in_words(evaluation)} of IDC", ylabel="patches (log)", yscale="log")
    counts.set_ylim(0.7, 2 * bins["patches"].max())
    counts.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def probabilities(evaluation: Evaluation) -> Figure:
    """Draw how the probabilities of each label are spread, with the threshold."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    ax = figure.subplots()
    table, threshold = evaluation.predictions, evaluation.judged.threshold
    bins = np.linspace(0, 1, _NUM_HISTOGRAM_BINS + 1).tolist()
    for label, name in ((0, "non-IDC"), (1, "IDC")):
        values = table[evaluation.judged.column].to_numpy()[table["label"] == label]
        text = f"labelled {name} ({len(values):,})"
        weights = np.full(len(values), 1 / max(len(values), 1))
        options = {"bins": bins, "weights": weights, "color": COLOURS[label]}
        ax.hist(values, histtype="stepfilled", alpha=0.55, **options)
        ax.hist(values, histtype="step", linewidth=1.5, label=text, **options)
    ax.axvline(threshold, color=INK, ls="--", label=f"threshold {_threshold(evaluation)}")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set(xlim=(0, 1), xlabel=f"{in_words(evaluation)} of IDC")
    ax.set_ylabel("share of the label's patches")
    ax.set_title("Probabilities by label")
    # Anywhere inside it would hide the threshold or a bar of some evaluation.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def border(evaluation: Evaluation) -> Figure:
    """Draw the metrics of the patches at each distance from the label border."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    ax = figure.subplots()
    place = np.arange(len(_BORDER_METRICS))
    for step, (distance, judged) in enumerate(evaluation.by_border.items()):
        patches = sum(vars(judged.confusion).values())
        values = np.array([judged.metrics[name] for name in _BORDER_METRICS])
        limits = np.array([judged.intervals[name] for name in _BORDER_METRICS])
        at, colour = place + 0.24 * (step - 1), _BORDER_COLOURS[distance]
        text = f"{BORDER_TITLES[distance]} ({count(patches, 'patch', 'patches')})"
        ax.hlines(at, limits[:, 0], limits[:, 1], colour, lw=2.5, alpha=0.7)
        ax.plot(values, at, "o", color=colour, ms=8, label=text)
        for value, y in zip(values, at, strict=True):
            ax.text(1.04, y, number(value), va="center", fontsize=9, clip_on=False)
    ax.set_yticks(place, [TITLES[name].replace(" ", "\n") for name in _BORDER_METRICS])
    ax.set(xlim=(max(-0.02, min(0.45, ax.get_xlim()[0])), 1.02))
    ax.set_ylim(len(place) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.grid(axis="x", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    ax.set_title("By distance to the label border")
    return figure


def _threshold(evaluation: Evaluation) -> str:
    return number(evaluation.judged.threshold)


def _with_interval(evaluation: Evaluation, name: str) -> str:
    limits = interval_in_words(*evaluation.judged.intervals[name])
    return number(evaluation.judged.metrics[name]) + (f" ({limits})" if limits else "")


CHARTS: dict[str, Callable[[Evaluation], Figure]] = {
    function.__name__: function
    for function in (confusion_matrix, roc_and_pr, reliability, probabilities, border)
}
