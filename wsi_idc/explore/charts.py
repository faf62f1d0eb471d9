"""Draw the numbers of a description: charts, one function each."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from wsi_idc.data.pack import Pack
from wsi_idc.explore import quality as audit
from wsi_idc.explore.pixel_statistics import CHANNELS
from wsi_idc.explore.tables import Description
from wsi_idc.plotting.colors import LABEL_COLORS as COLOURS
from wsi_idc.plotting.style import INK, say_none

_COLUMN_OF = {0: "non_idc", 1: "idc", -1: "unknown"}
_CHANNEL_COLOURS = {"red": "#c2410c", "green": "#2a9d6f", "blue": "#2f6db3"}
_NUM_BINS = 20
_MAX_NAMED = 12


def label_names(pack: Pack) -> dict[int, str]:
    """Return what each label is called."""
    return dict(enumerate(pack.info.class_names)) | {-1: "unknown"}


def class_balance(description: Description, pack: Pack) -> Figure:
    """Draw the patches of each class, overall and of each patient."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    overall, each = figure.subplots(1, 2, width_ratios=[1, 2.6])
    patients = description.patients
    ordered = patients.sort_values(["idc_fraction", "patient"], ascending=[False, True])
    edges, below = np.arange(len(ordered) + 1) - 0.5, np.zeros(len(ordered))
    names = label_names(pack)
    present = [label for label in (1, 0, -1) if patients[_COLUMN_OF[label]].sum()]
    for at, label in enumerate(present):
        count = int(patients[_COLUMN_OF[label]].sum())
        overall.bar(at, count, color=COLOURS[label])
        text = f"{count:,}\n{count / len(pack):.1%}"
        overall.annotate(text, (at, count), (0, 3), textcoords="offset points", ha="center")
        share = (ordered[_COLUMN_OF[label]] / ordered["patches"]).to_numpy()
        each.stairs(below + share, edges, baseline=below, fill=True, color=COLOURS[label])
        below = below + share
    overall.set_xticks(range(len(present)), [names[label] for label in present])
    overall.set(title="All patches", ylabel="patches")
    overall.margins(y=0.15)
    overall.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    each.set(title="Each patient", xlabel="patients, by IDC fraction", ylabel="share of patches")
    each.set(xlim=(-0.5, len(ordered) - 0.5), ylim=(0, 1))
    _count_from_one(each, len(ordered))
    return figure


def idc_fraction(description: Description, pack: Pack) -> Figure:
    """Draw how the IDC fraction is spread over the patients."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    values = description.patients["idc_fraction"].dropna().to_numpy()
    if len(values):
        bins = np.linspace(0, 1, _NUM_BINS + 1).tolist()
        ax.hist(values, bins=bins, color=COLOURS[1], edgecolor="white")
        _mark_median(ax, float(np.median(values)), "{:.2f}")
    else:
        say_none(ax, "no patient has a known label")
    ax.set(title=f"IDC fraction of {len(values)} patients", xlim=(0, 1))
    ax.set(xlabel="share of the patient's labelled patches that are IDC", ylabel="patients")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def patches_per_patient(description: Description, pack: Pack) -> Figure:
    """Draw how many patches the patients have."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    values = description.patients["patches"].to_numpy()
    bins = np.geomspace(values.min(), values.max() + 1, _NUM_BINS + 1).tolist()
    ax.hist(values, bins=bins, color=COLOURS[0], edgecolor="white")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if bins[-1] > 10 * bins[0]:
        ax.xaxis.set_minor_formatter("")
    else:
        ax.xaxis.set_minor_formatter(StrMethodFormatter("{x:,.0f}"))
    _mark_median(ax, float(np.median(values)), "{:,.0f}")
    ax.set(title=f"{values.sum():,} patches of {len(values)} patients")
    ax.set(xlabel="patches of a patient (logarithmic)", ylabel="patients")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def sizes(description: Description, pack: Pack) -> Figure:
    """Draw the sizes of the patches that are smaller than the rest."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    ax = figure.subplots()
    side, table = pack.info.patch_px, description.sizes
    small = table[(table["height"] < side) | (table["width"] < side)]
    if small.empty:
        say_none(ax, f"every patch is {side} x {side} px")
    else:
        area = 30 + 300 * small["patches"] / small["patches"].max()
        inside = (small["inside_slide"] > 0).to_numpy()
        for rows, colour, name in (
            (~inside, COLOURS[0], "at the right or bottom edge of the slide"),
            (inside, COLOURS[1], "also inside the slide"),
        ):
            some = small[rows]
            if len(some):
                drawn = ax.scatter(
                    some["width"], some["height"], area[rows], colour, alpha=0.8, label=name
                )
                drawn.set(edgecolor=INK, linewidth=0.5)
        most = small.iloc[int(small["patches"].argmax())]
        text = f"{most['patches']:,} of {most['width']} x {most['height']} px"
        point = (most["width"], most["height"])
        ax.annotate(text, point, (-14, 0), textcoords="offset points", ha="right", va="center")
        ax.legend(loc="lower left", title="area: number of patches")
    num, lacking = small["patches"].sum(), small["idc"].sum()
    ax.set(title=f"{num:,} patches smaller than {side} x {side} px, {lacking:,} of them IDC")
    ax.set(xlabel="width, px", ylabel="height, px", xlim=(0, side * 1.06), ylim=(0, side * 1.06))
    ax.set_aspect("equal")
    return figure


def channels_by_class(description: Description, pack: Pack) -> Figure:
    """Draw the channel means of the patches of each class."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(CHANNELS), sharex=True, sharey=True)
    measured, labels = description.measures.table, pack.index["label"].to_numpy()
    names, classes = label_names(pack), description.classes
    for ax, channel in zip(axes, CHANNELS, strict=True):
        means = (measured[f"sum_{channel}"] / measured["num_px"] / 255).to_numpy()
        for label in (0, 1, -1):
            values = means[labels == label]
            if not len(values):
                continue
            row = classes[classes["class"] == names[label]].iloc[0]
            mean, std = row[f"mean_{channel}"], row[f"std_{channel}"]
            share = np.full(len(values), 100 / len(values))
            options = {"bins": np.linspace(0, 1, 51), "weights": share, "color": COLOURS[label]}
            ax.hist(values, histtype="stepfilled", alpha=0.55, **options)
            name = f"{names[label]}: {mean:.3f} ± {std:.3f}"
            ax.hist(values, histtype="step", linewidth=1.5, label=name, **options)
        ax.set(title=channel.capitalize(), xlim=(0, 1), xlabel="mean of a patch (0 black, 1 full)")
        ax.legend(loc="upper left", fontsize=8, title="all pixels, mean ± std", title_fontsize=8)
    axes[0].set_ylabel("% of the patches of the class")
    axes[0].margins(y=0.35)
    return figure


def channels_by_patient(description: Description, pack: Pack) -> Figure:
    """Draw mean and standard deviation of the channels of each patient."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(len(CHANNELS), 1, sharex=True, sharey=True)
    patients = description.patients
    brightness = patients[[f"mean_{name}" for name in CHANNELS]].mean(axis=1)
    ordered = patients.iloc[np.argsort(brightness.to_numpy(), kind="stable")]
    place = np.arange(len(ordered))
    for ax, channel in zip(axes, CHANNELS, strict=True):
        mean, std = (ordered[f"{what}_{channel}"].to_numpy() for what in ("mean", "std"))
        colour = _CHANNEL_COLOURS[channel]
        ax.errorbar(place, mean, std, fmt="none", ecolor=colour, elinewidth=1, alpha=0.35)
        ax.plot(place, mean, "o", color=colour, markersize=2.5)
        ax.set(ylabel=channel, xlim=(-0.5, len(ordered) - 0.5), ylim=(0, 1.05))
    _count_from_one(axes[-1], len(ordered))
    axes[-1].set_xlabel("patients, dark to bright")
    figure.suptitle(
        "Channels of each patient: mean (mark) ± standard deviation (line); 0 black, 1 full",
        fontsize=11,
    )
    return figure


def stain(description: Description, pack: Pack) -> Figure:
    """Draw the stain of each patient, outliers named."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    table = description.patients
    table = table[table["stain_strength"].notna()]
    judged, odd = table["stain_strength_z"].notna(), table["stain_outlier"]
    few = f"fewer than {audit.MIN_PATCHES_FOR_STAIN} patches of tissue, not judged"
    for ax, feature, name in zip(
        axes, ("red_share", "blue_share"), ("red (more: bluer tissue)", "blue"), strict=True
    ):
        for rows, colour, marker, what in (
            (~judged, COLOURS[-1], "x", few),
            (judged & ~odd, COLOURS[0], "o", "patient"),
            (odd, COLOURS[1], "D", f"outlier: beyond a modified z of ±{audit.MAX_ABS_Z}, dashed"),
        ):
            some = table[rows]
            if len(some):
                label = f"{what} ({len(some)})"
                ax.scatter(
                    some["stain_strength"], some[feature], 24, colour, marker=marker, label=label
                )
        for row in table[odd].head(_MAX_NAMED).to_dict("records"):
            point = (row["stain_strength"], row[feature])
            ax.annotate(str(row["patient"]), point, (6, 4), textcoords="offset points", fontsize=8)
        _draw_limits(ax, table, "stain_strength", vertical=True)
        _draw_limits(ax, table, feature, vertical=False)
        ax.set(xlabel="stain strength: mean optical density of the tissue")
        ax.set(title=f"Share of optical density in {name}", ylabel="share of the sum")
    if table.empty:
        say_none(axes[0], "no patient has tissue")
    else:
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_limits(ax: Axes, table: pd.DataFrame, feature: str, *, vertical: bool) -> None:
    """Draw dashed lines where the modified z-score of a feature reaches its limit."""
    values: NDArray[np.float64] = table[feature].to_numpy(float)
    z = table[f"{feature}_z"].to_numpy(float)
    known = ~np.isnan(z)
    if not known.any() or np.ptp(z[known]) == 0:
        return
    low, high = np.argmin(np.where(known, z, np.inf)), np.argmax(np.where(known, z, -np.inf))
    slope = (values[high] - values[low]) / (z[high] - z[low])
    for limit in (-audit.MAX_ABS_Z, audit.MAX_ABS_Z):
        draw = ax.axvline if vertical else ax.axhline
        draw(values[low] + (limit - z[low]) * slope, color=INK, linestyle="--", linewidth=0.8)


def _mark_median(ax: Axes, median: float, form: str) -> None:
    ax.axvline(median, color=INK, linestyle="--", label=f"median {form.format(median)}")
    ax.legend()


def _count_from_one(ax: Axes, count: int) -> None:
    """Number patients from 1 along an axis whose places count from 0."""
    ticks = [tick for tick in MaxNLocator(8, integer=True).tick_values(1, count) if tick <= count]
    ticks = [max(int(tick), 1) for tick in ticks if tick >= 0]
    ax.set_xticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])


CHARTS: dict[str, Callable[[Description, Pack], Figure]] = {
    function.__name__: function
    for function in (
        class_balance,
        idc_fraction,
        patches_per_patient,
        sizes,
        channels_by_class,
        channels_by_patient,
        stain,
    )
}
