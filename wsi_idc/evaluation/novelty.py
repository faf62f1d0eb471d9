"""Errors of a predictor by novelty. The novelty of unusual patches is near 1."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from wsi_idc.core.constants import IDC
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.metrics.classification import auc
from wsi_idc.plotting.number_format import percent

# Limits of the bins. The novelty of val patches is distributed evenly from 0 to 1.
_EDGES = (0, 0.2, 0.4, 0.6, 0.8, 0.99, 1.0)


def novelty_bins(predictions: pd.DataFrame, column: str, threshold: float) -> pd.DataFrame | None:
    """Compute the error rate and the AUC in each bin of novelty that has patches.

    If the predictor has no novelty model, the table has no column novelty: return None.

    Args:
        predictions: Table of patches with the columns label, novelty and ``column``.
        column: Name of the column of probabilities.
        threshold: Lowest probability that is called IDC.

    Returns:
        One row per bin. Columns: low, high (limits of the bin), patches, prevalence, error_rate,
        auc.
    """
    if "novelty" not in predictions:
        return None
    number = np.digitize(predictions["novelty"], _EDGES[1:-1])
    rows = []
    for index in np.unique(number):
        part = predictions[number == index]
        label, probability = part["label"].to_numpy(), part[column].to_numpy()
        error_rate = float(((probability >= threshold) != (label == IDC)).mean())
        limits = {"low": _EDGES[index], "high": _EDGES[index + 1]}
        rows.append(
            {**limits, "patches": len(part), "prevalence": float((label == IDC).mean())}
            | {"error_rate": error_rate, "auc": auc(label, probability)}
        )
    return pd.DataFrame(rows)


def novelty_chart(evaluation: Evaluation) -> Figure:
    """Draw the error rate in each bin of novelty, and the number of patches in the bin."""
    final, table = evaluation.final, evaluation.novelty
    assert table is not None
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    bars = ax.bar(np.arange(len(table)), table["error_rate"], color="#4a90c4")
    labels = [
        f"{count:,}\n" + ("" if np.isnan(area) else f"AUC {area:.3f}")
        for count, area in zip(table["patches"], table["auc"], strict=True)
    ]
    # The labels cover the line of all patches.
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.bar_label(bars, labels, fontsize=8, padding=3, bbox=box)
    overall = (
        (evaluation.predictions[final.column] >= final.threshold)
        != (evaluation.predictions["label"] == IDC)
    ).mean()
    name = f"all patches: {percent(float(overall))}"
    ax.axhline(overall, color="0.4", linestyle="--", linewidth=1, label=name)
    names = [f"{low:g} to {high:g}" for low, high in zip(table["low"], table["high"], strict=True)]
    ax.set_xticks(np.arange(len(table)), names)
    ax.set(xlabel="novelty of the patch", ylabel="wrong calls", title="Errors by novelty")
    ax.set_ylim(0, 1.25 * max(table["error_rate"].max(), float(overall), 0.01))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.legend(frameon=False, loc="upper right")
    return figure
