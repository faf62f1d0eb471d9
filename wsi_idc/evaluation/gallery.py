"""Draw the patches that a method is surest of and wrong about."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from wsi_idc.data.pack import Pack
from wsi_idc.evaluation.charts import in_words
from wsi_idc.evaluation.results import Evaluation
from wsi_idc.geometry.grid import INTERIOR
from wsi_idc.plotting.number_format import number
from wsi_idc.plotting.style import INK, printable

NUM_ROWS, NUM_COLS = 4, 6
# So that one patient does not fill it.
MOST_OF_A_PATIENT = 2
_WHITE = 255
_WIDTH, _TITLE_HEIGHT = 10, 0.45  # inches
# Around a patch its neighbours are shown, if at least so many of the 8 are there in the mean.
_MIN_NEIGHBOURS = 4
_CAPTION_HEIGHT = 0.38  # of a picture's side


def surest_wrong(
    predictions: pd.DataFrame, column: str, *, threshold: float, label: int
) -> pd.DataFrame:
    """Return the patches of a label that are called the other, the surest first.

    At most ``MOST_OF_A_PATIENT`` of a patient and ``NUM_ROWS * NUM_COLS`` of all.

    Args:
        predictions: Columns patient, label and ``column``.
        column: The probability of IDC that is judged.
        threshold: From which a patch is called IDC.
        label: 0 for false positives, 1 for false negatives.
    """
    called = predictions[column] >= threshold
    wrong = predictions[(predictions["label"] == label) & (called != (label == 1))]
    ordered = wrong.sort_values(column, ascending=label == 1, kind="stable")
    few = ordered.groupby("patient", sort=False).head(MOST_OF_A_PATIENT)
    return few.head(NUM_ROWS * NUM_COLS)


def false_positives(evaluation: Evaluation, pack: Pack) -> Figure:
    """Draw the non-IDC patches with the largest probability of IDC."""
    return _gallery(evaluation, pack, label=0, name="False positives")


def false_negatives(evaluation: Evaluation, pack: Pack) -> Figure:
    """Draw the IDC patches with the smallest probability of IDC."""
    return _gallery(evaluation, pack, label=1, name="False negatives")


def _gallery(evaluation: Evaluation, pack: Pack, *, label: int, name: str) -> Figure:
    judged, counts = evaluation.judged, evaluation.judged.confusion
    chosen = surest_wrong(
        evaluation.predictions, judged.column, threshold=judged.threshold, label=label
    )
    total = counts.false_negative if label else counts.false_positive
    if chosen.empty:
        figure = Figure(figsize=(_WIDTH, 0.8))
        figure.text(0.5, 0.5, f"{name}: none", ha="center", va="center")
        return figure
    rows = -(-len(chosen) // NUM_COLS) * (1 + _CAPTION_HEIGHT)
    height = _TITLE_HEIGHT + _WIDTH / NUM_COLS * rows
    figure = Figure(figsize=(_WIDTH, height))
    # Nothing here needs to be laid out, which would take longer than all the rest.
    ax = figure.add_axes((0, 0, 1, 1 - _TITLE_HEIGHT / height))
    pictures, with_neighbours = _pictures(chosen, pack)
    for index, (picture, row) in enumerate(zip(pictures, chosen.to_dict("records"), strict=True)):
        left, top = index % NUM_COLS + 0.04, index // NUM_COLS * (1 + _CAPTION_HEIGHT)
        _draw(ax, picture, left, top, framed=with_neighbours)
        caption = _caption(row, judged.column)
        ax.text(left, top + 0.96, caption, va="top", fontsize=8, color=INK, linespacing=1.25)
    ax.set(xlim=(0, NUM_COLS), ylim=(rows, 0))
    ax.set_axis_off()
    ax.set_title(
        f"{name}: the {len(chosen)} surest of {total:,}, at most {MOST_OF_A_PATIENT} a patient; "
        f"p: {in_words(evaluation)} of IDC"
    )
    return figure


def _pictures(chosen: pd.DataFrame, pack: Pack) -> tuple[list[NDArray[np.uint8]], bool]:
    """Return a picture of each patch, and whether its neighbours are around it."""
    side = pack.info.patch_px
    found = [surroundings(pack, *place) for place in _places(chosen)]
    if np.mean([num for _, num in found]) >= _MIN_NEIGHBOURS:
        return [picture for picture, _ in found], True
    return [picture[side:-side, side:-side] for picture, _ in found], False


def _places(chosen: pd.DataFrame) -> Iterator[tuple[str, int, int]]:
    return chosen[["patient", "x", "y"]].itertuples(index=False, name=None)


def _draw(ax: Axes, picture: NDArray[np.uint8], left: float, top: float, *, framed: bool) -> None:
    """Draw one picture of side 0.92 in a cell of the sheet, its middle third framed."""
    side, third = 0.92, 0.92 / 3
    # Its pixels as they are: the viewer enlarges them.
    ax.imshow(
        picture, extent=(left, left + side, top + side, top), interpolation="none", aspect="auto"
    )
    ax.add_patch(Rectangle((left, top), side, side, fill=False, ec="#cccccc", lw=0.6))
    if framed:
        ax.add_patch(Rectangle((left + third, top + third), third, third, fill=False, ec="black"))


def _caption(row: Mapping[Any, Any], column: str) -> str:
    distance = row["border_distance"]
    border = f"\N{GREATER-THAN OR EQUAL TO} {distance}" if distance == INTERIOR else str(distance)
    return (
        f"{printable(row['patient'])}\nx {row['x']}, y {row['y']}\n"
        f"p {number(row[column])}, border {border}"
    )


def surroundings(pack: Pack, patient: str, x: int, y: int) -> tuple[NDArray[np.uint8], int]:
    """Return the patch at a place amid its 8 neighbours, and how many of them there are.

    Shape (3 * patch_px, 3 * patch_px, 3), white where one is missing.
    """
    side, rows = pack.info.patch_px, pack.rows_of(patient)
    picture = np.full((3 * side, 3 * side, 3), _WHITE, np.uint8)
    xy = pack.index[["x", "y"]].to_numpy()[rows]
    cell = (xy - (x, y)) // side + 1  # column and row, 0 to 2
    near = np.flatnonzero(((cell >= 0) & (cell <= 2)).all(axis=1))
    for at in near:
        col, row = cell[at]
        picture[row * side :, col * side :][:side, :side] = pack.patches[rows[at]]
    return picture, len(near) - 1


GALLERIES: dict[str, Callable[[Evaluation, Pack], Figure]] = {
    function.__name__: function for function in (false_positives, false_negatives)
}
