"""Charts of the tables and statistics of a pack."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from wsi_idc.core.text import count
from wsi_idc.data.pack import Pack
from wsi_idc.explore.pixel_statistics import CHANNELS
from wsi_idc.explore.quality import MAX_ABS_Z, MIN_PATCHES_FOR_STAIN
from wsi_idc.explore.tables import LABEL_COLUMNS, Description, label_names
from wsi_idc.plotting.colors import INK, LABEL_COLORS
from wsi_idc.plotting.style import printable, say_none

_CHANNEL_COLORS = {"red": "#c2410c", "green": "#2a9d6f", "blue": "#2f6db3"}
_NUM_BINS = 20
_MAX_NAMED = 12
_MAX_LABELLED = 50  # largest number of patients whose ids fit on an axis


def class_balance(description: Description, pack: Pack) -> Figure:
    """Draw the number of patches of each class, and the fraction of each class per patient."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    overall, each = figure.subplots(1, 2, width_ratios=[1, 2.6])
    patients = description.patients
    ordered = patients.sort_values(["idc_fraction", "patient"], ascending=[False, True])
    edges, below = np.arange(len(ordered) + 1) - 0.5, np.zeros(len(ordered))
    names = label_names(pack)
    present = [label for label in (1, 0, -1) if patients[LABEL_COLUMNS[label]].sum()]
    for place, label in enumerate(present):
        num = int(patients[LABEL_COLUMNS[label]].sum())
        overall.bar(place, num, color=LABEL_COLORS[label])
        text = f"{num:,}\n{num / len(pack):.1%}"
        overall.annotate(text, (place, num), (0, 3), textcoords="offset points", ha="center")
        share = (ordered[LABEL_COLUMNS[label]] / ordered["patches"]).to_numpy()
        options = {"fill": True, "color": LABEL_COLORS[label], "label": names[label]}
        each.stairs(below + share, edges, baseline=below, **options)
        below = below + share
    overall.set_xticks(range(len(present)), [names[label] for label in present])
    overall.set(title="All patches", ylabel="patches")
    overall.margins(y=0.15)
    overall.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    each.set(title="Each patient", xlabel="patients, by IDC fraction", ylabel="fraction of patches")
    each.set(xlim=(-0.5, len(ordered) - 0.5), ylim=(0, 1))
    _label_patients(each, ordered["patient"])
    each.legend(loc="upper right", framealpha=1)
    return figure


def idc_fraction(description: Description, pack: Pack) -> Figure:
    """Draw a histogram of the IDC fractions of the patients."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    values = description.patients["idc_fraction"].dropna().to_numpy()
    if len(values):
        bins = np.linspace(0, 1, _NUM_BINS + 1).tolist()
        ax.hist(values, bins=bins, color=LABEL_COLORS[1], edgecolor="white")
        _mark_median(ax, float(np.median(values)), "{:.2f}")
    else:
        say_none(ax, "no patient has a known label")
    ax.set(title=f"IDC fraction of {count(len(values), 'patient')}", xlim=(0, 1))
    ax.set(xlabel="IDC fraction of the patient's labelled patches", ylabel="patients")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def patches_per_patient(description: Description, pack: Pack) -> Figure:
    """Draw a histogram of the number of patches per patient."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    values = description.patients["patches"].to_numpy()
    bins = np.geomspace(values.min(), values.max() + 1, _NUM_BINS + 1).tolist()
    ax.hist(values, bins=bins, color=LABEL_COLORS[0], edgecolor="white")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter("" if bins[-1] > 10 * bins[0] else StrMethodFormatter("{x:,.0f}"))
    _mark_median(ax, float(np.median(values)), "{:,.0f}")
    patches = count(int(values.sum()), "patch", "patches")
    ax.set(title=f"{patches} of {count(len(values), 'patient')}")
    ax.set(xlabel="patches of a patient (logarithmic)", ylabel="patients")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def sizes(description: Description, pack: Pack) -> Figure:
    """Draw the sizes of the patches that are smaller than the full size."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    ax = figure.subplots()
    side, table = pack.info.patch_px, description.sizes
    limits = (0, side * 1.06)
    ax.set(xlabel="width, px", ylabel="height, px", xlim=limits, ylim=limits)
    small = table[(table["height"] < side) | (table["width"] < side)]
    if small.empty:
        say_none(ax, f"every patch is {side} x {side} px")
    else:
        area = 30 + 300 * small["patches"] / small["patches"].max()
        inside = (small["inside_slide"] > 0).to_numpy()
        for rows, color, name in (
            (~inside, LABEL_COLORS[0], "at the right or bottom edge of the slide"),
            (inside, LABEL_COLORS[1], "also inside the slide"),
        ):
            if rows.any():
                x, y = small["width"][rows], small["height"][rows]
                marks = ax.scatter(x, y, area[rows], color, alpha=0.8, label=name)
                marks.set(edgecolor=INK, linewidth=0.5)
        most = small.iloc[int(small["patches"].argmax())]
        patches = count(int(most["patches"]), "patch", "patches")
        ax.set_xlabel(f"width, px\n(most often {most['width']} x {most['height']} px: {patches})")
        # The legend is outside: inside the axes the legend could cover a mark or its label.
        title = "Area of a mark: number of patches"
        figure.legend(loc="outside lower center", ncols=2, title=title, frameon=False)
    num, num_idc = small["patches"].sum(), small["idc"].sum()
    ax.set(title=f"{num:,} patches smaller than {side} x {side} px, {num_idc:,} of them IDC")
    ax.set_aspect("equal")
    return figure


def channels_by_class(description: Description, pack: Pack) -> Figure:
    """Draw, for each channel and class, a histogram of the channel means of the patches."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(CHANNELS), sharex=True, sharey=True)
    table, labels = description.pixels.table, pack.index["label"].to_numpy()
    names, classes, bins = label_names(pack), description.classes, np.linspace(0, 1, 51)
    for ax, channel in zip(axes, CHANNELS, strict=True):
        means = (table[f"sum_{channel}"] / table["num_px"] / 255).to_numpy()
        for label in (0, 1, -1):
            values = means[labels == label]
            if not len(values):
                continue
            row = classes[classes["class"] == names[label]].iloc[0]
            mean, std = row[f"mean_{channel}"], row[f"std_{channel}"]
            percent = np.full(len(values), 100 / len(values))
            options = {"bins": bins, "weights": percent, "color": LABEL_COLORS[label]}
            ax.hist(values, histtype="stepfilled", alpha=0.55, **options)
            name = f"{names[label]}: {mean:.3f} ± {std:.3f}"
            ax.hist(values, histtype="step", linewidth=1.5, label=name, **options)
        ax.set(title=channel.capitalize(), xlim=(0, 1), xlabel="mean of a patch (0 dark, 1 bright)")
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
        mean, std = (ordered[f"{name}_{channel}"].to_numpy() for name in ("mean", "std"))
        color = _CHANNEL_COLORS[channel]
        ax.errorbar(place, mean, std, fmt="none", ecolor=color, elinewidth=1, alpha=0.35)
        ax.plot(place, mean, "o", color=color, markersize=2.5)
        ax.set(ylabel=channel, xlim=(-0.5, len(ordered) - 0.5), ylim=(0, 1.05))
    _label_patients(axes[-1], ordered["patient"])
    axes[-1].set_xlabel("patients, dark to bright")
    title = "Channels of each patient: mean (mark) ± standard deviation (line); 0 dark, 1 bright"
    figure.suptitle(title, fontsize=11)
    return figure


def stain(description: Description, pack: Pack) -> Figure:
    """Draw the stain statistics of each patient, and write the ids of the outliers."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    table = description.patients
    table = table[table["stain_strength"].notna()]
    has_score, is_outlier = table["stain_strength_z"].notna(), table["stain_outlier"]
    no_score = f"fewer than {MIN_PATCHES_FOR_STAIN} patches of tissue, no score"
    limits = f"limits: modified z of ±{MAX_ABS_Z}"
    features = (("red_share", "red (more: bluer tissue)"), ("blue_share", "blue"))
    for ax, (feature, name) in zip(axes, features, strict=True):
        for rows, color, marker, text in (
            (~has_score, LABEL_COLORS[-1], "x", no_score),
            (has_score & ~is_outlier, LABEL_COLORS[0], "o", "patient"),
            (is_outlier, LABEL_COLORS[1], "D", "outlier"),
        ):
            if num := int(rows.sum()):
                x, y, label = table["stain_strength"][rows], table[feature][rows], f"{text} ({num})"
                ax.scatter(x, y, 24, color, marker=marker, label=label)
        for row in table[is_outlier].head(_MAX_NAMED).to_dict("records"):
            point = (row["stain_strength"], row[feature])
            ax.annotate(
                printable(row["patient"]), point, (6, 4), textcoords="offset points", fontsize=8
            )
        _draw_limits(ax, table, "stain_strength", vertical=True, label=limits)
        _draw_limits(ax, table, feature, vertical=False)
        ax.set(xlabel="stain strength: mean optical density of the tissue")
        ax.set(title=f"Optical density in {name}", ylabel="fraction of the sum of the channels")
    if table.empty:
        say_none(axes[0], "no patient has tissue")
    else:
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_limits(
    ax: Axes, table: pd.DataFrame, feature: str, *, vertical: bool, label: str | None = None
) -> None:
    """Draw dashed lines at the limits of the modified z-score of a feature."""
    values: NDArray[np.float64] = table[feature].to_numpy(float)
    z = table[f"{feature}_z"].to_numpy(float)
    known = ~np.isnan(z)
    if not known.any() or np.ptp(z[known]) == 0:
        return
    low, high = np.argmin(np.where(known, z, np.inf)), np.argmax(np.where(known, z, -np.inf))
    slope = (values[high] - values[low]) / (z[high] - z[low])
    draw = ax.axvline if vertical else ax.axhline
    for limit, name in ((-MAX_ABS_Z, label), (MAX_ABS_Z, None)):
        place = values[low] + (limit - z[low]) * slope
        draw(place, color=INK, linestyle="--", linewidth=0.8, label=name)


def _mark_median(ax: Axes, median: float, text: str) -> None:
    ax.axvline(median, color=INK, linestyle="--", label=f"median {text.format(median)}")
    ax.legend()


def _label_patients(ax: Axes, patients: pd.Series) -> None:
    """Label the x axis with the patient ids, or with numbers from 1 if the ids do not fit."""
    num = len(patients)
    if num <= _MAX_LABELLED:
        ax.set_xticks(range(num), [printable(name) for name in patients])
        ax.tick_params(axis="x", rotation=90, labelsize=8)
        return
    ticks = [max(int(tick), 1) for tick in MaxNLocator(8, integer=True).tick_values(1, num)]
    ticks = [tick for tick in dict.fromkeys(ticks) if tick <= num]
    ax.set_xticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks])


CHARTS: dict[str, Callable[[Description, Pack], Figure]] = {
    draw.__name__: draw
    for draw in (
        *(class_balance, idc_fraction, patches_per_patient, sizes),
        *(channels_by_class, channels_by_patient, stain),
    )
}
