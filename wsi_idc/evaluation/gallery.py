"""Galleries of the false positives and false negatives with the most confident probabilities."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.charts import probability_name
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.explore.patch_figures import Pixels, neighborhood
from wsi_idc.geometry.grid import INTERIOR
from wsi_idc.plotting.colors import INK
from wsi_idc.plotting.number_format import number
from wsi_idc.plotting.style import printable

NUM_ROWS, NUM_COLS = 4, 6
# A gallery shows at most this number of patches per patient, so that it has several patients.
MAX_PER_PATIENT = 2
_WIDTH, _TITLE_HEIGHT = 10, 0.45  # inches
# A gallery shows neighbors if its patches have at least this many of 8 neighbors on average.
_MIN_NEIGHBORS = 4
_CAPTION_HEIGHT = 0.38  # fraction of an image's side


def surest_wrong(
    predictions: pd.DataFrame, column: str, *, threshold: float, label: int
) -> pd.DataFrame:
    """Select the wrongly classified patches of one label, the most confident prediction first.

    Columns of ``predictions``: patient, label, and ``column``, which has the probability of IDC.
    Label 0 selects false positives, and label 1 selects false negatives. The result has at most
    ``MAX_PER_PATIENT`` rows per patient, and at most ``NUM_ROWS * NUM_COLS`` rows in total.
    """
    called = predictions[column] >= threshold
    wrong = predictions[(predictions["label"] == label) & (called != (label == 1))]
    ordered = wrong.sort_values(column, ascending=label == 1, kind="stable")
    return ordered.groupby("patient", sort=False).head(MAX_PER_PATIENT).head(NUM_ROWS * NUM_COLS)


def false_positives(evaluation: Evaluation, pack: Pack) -> Figure:
    """Draw the false positives with the largest probabilities of IDC."""
    return _gallery(evaluation, pack, label=0, name="False positives")


def false_negatives(evaluation: Evaluation, pack: Pack) -> Figure:
    """Draw the false negatives with the smallest probabilities of IDC."""
    return _gallery(evaluation, pack, label=1, name="False negatives")


def _gallery(evaluation: Evaluation, pack: Pack, *, label: int, name: str) -> Figure:
    final, counts = evaluation.final, evaluation.final.confusion
    num_wrong = counts.false_negative if label else counts.false_positive
    chosen = surest_wrong(
        evaluation.predictions, final.column, threshold=final.threshold, label=label
    )
    if chosen.empty:
        figure = Figure(figsize=(_WIDTH, 0.8))
        figure.text(0.5, 0.5, f"{name}: none", ha="center", va="center")
        return figure
    rows = -(-len(chosen) // NUM_COLS) * (1 + _CAPTION_HEIGHT)
    height = _TITLE_HEIGHT + _WIDTH / NUM_COLS * rows
    figure = Figure(figsize=(_WIDTH, height))
    # Positions are computed here: a layout engine would take longer than drawing the figure.
    ax = figure.add_axes((0, 0, 1, 1 - _TITLE_HEIGHT / height))
    rows_shown = chosen.to_dict("records")
    found = [neighborhood(pack, _row_in_pack(pack, row)) for row in rows_shown]
    images, num_neighbors = zip(*found, strict=True)
    has_neighbors = np.mean(num_neighbors) >= _MIN_NEIGHBORS
    for index, (image, row) in enumerate(zip(images, rows_shown, strict=True)):
        left, top = index % NUM_COLS + 0.04, index // NUM_COLS * (1 + _CAPTION_HEIGHT)
        _draw_image(ax, image, left, top, has_neighbors=has_neighbors)
        distance = row["border_distance"]
        border = f"\N{GREATER-THAN OR EQUAL TO} {distance}" if distance == INTERIOR else distance
        place = f"{printable(row['patient'])}\nx {row['x']}, y {row['y']}"
        caption = f"{place}\np {number(row[final.column])}, border {border}"
        ax.text(left, top + 0.96, caption, va="top", fontsize=8, color=INK, linespacing=1.25)
    ax.set(xlim=(0, NUM_COLS), ylim=(rows, 0))
    ax.set_axis_off()
    ax.set_title(
        f"{name}: the {len(chosen)} most confident of {num_wrong:,}, "
        f"at most {MAX_PER_PATIENT} per patient"
        f"; p: {probability_name(evaluation)} of IDC"
    )
    return figure


def _row_in_pack(pack: Pack, prediction: Mapping[Hashable, Any]) -> int:
    rows = pack.rows_of(prediction["patient"], prediction.get("slide"))
    xy = pack.index[["x", "y"]].to_numpy()[rows]
    return int(rows[(xy == (prediction["x"], prediction["y"])).all(axis=1)][0])


def _draw_image(ax: Axes, image: Pixels, left: float, top: float, *, has_neighbors: bool) -> None:
    """Draw the patch; if ``has_neighbors``, add the neighbors and a frame around the patch."""
    side, third = 0.92, 0.92 / 3
    if not has_neighbors:
        px = len(image) // 3
        image = image[px:-px, px:-px]
    # The figure keeps the original pixels. The program that shows the figure enlarges them.
    extent = (left, left + side, top + side, top)
    ax.imshow(image, extent=extent, interpolation="none", aspect="auto")
    ax.add_patch(Rectangle((left, top), side, side, fill=False, ec="#cccccc", lw=0.6))
    if has_neighbors:
        ax.add_patch(Rectangle((left + third, top + third), third, third, fill=False, ec="black"))


GALLERIES: dict[str, Callable[[Evaluation, Pack], Figure]] = {
    function.__name__: function for function in (false_positives, false_negatives)
}
