"""Hints at what may be wrong with a data set: places to look at, not verdicts."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.data.pack import Pack
from wsi_idc.explore.pixel_statistics import CHANNELS, OD_UNIT
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

LABEL, BLANK, DARK_BAND, STAIN = "label", "blank", "dark band", "stain"
PATCH_KINDS = (LABEL, BLANK, DARK_BAND)

MIN_TISSUE_SHARE = 0.02
MIN_DIM_LINES = 3
# Iglewicz & Hoaglin, How to Detect and Handle Outliers (1993): modified z-scores above 3.5.
MAX_ABS_Z = 3.5
# The stain of a patient with fewer patches of tissue says more about the patches.
MIN_PATCHES_FOR_STAIN = 10
STAIN_FEATURES = ("stain_strength", "red_share", "blue_share")
# A median absolute deviation times this is the standard deviation of a normal distribution.
_MAD_TO_STD = 1.4826
_AROUND = tuple((row, col) for row in (-1, 0, 1) for col in (-1, 0, 1) if (row, col) != (0, 0))

RULES = {
    LABEL: "all 8 neighbours are there and carry the other label",
    BLANK: f"less than {MIN_TISSUE_SHARE:.0%} of the pixels are stained tissue",
    DARK_BAND: f"{MIN_DIM_LINES} or more lines of pixels are grey from side to side, as at the "
    "edge of the glass",
    STAIN: f"a modified z-score beyond {MAX_ABS_Z} among the patients",
}

Bools = NDArray[np.bool_]


def neighbor_index(pack: Pack) -> NDArray[np.int64]:
    """Return the positions of the 8 patches around each patch, shape (N, 8), -1 where is none."""
    # A border of one empty cell keeps what is left of a row apart from the end of the last one.
    stride = MAX_CELLS_PER_SIDE + 2
    row_col = pack.cells()
    patient = pack.index["patient"].to_numpy(np.int64)
    keys = (patient * stride + row_col[:, 0] + 1) * stride + row_col[:, 1] + 1
    order = np.argsort(keys, kind="stable")
    found = np.full((len(keys), len(_AROUND)), -1)
    for at, (rows, cols) in enumerate(_AROUND):
        wanted = keys + rows * stride + cols
        place = np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)
        candidate = order[place]
        found[:, at] = np.where(keys[candidate] == wanted, candidate, -1)
    return found


def isolated_labels(labels: NDArray[np.int8], around: NDArray[np.int64]) -> Bools:
    """Return which patches have 8 neighbours that all carry the other label.

    Args:
        labels: 0, 1, or -1 unknown, shape (N,).
        around: Positions of the neighbours, shape (N, 8), -1 where is none.
    """
    theirs = np.where(around >= 0, labels[around], -1)
    return (labels >= 0) & (theirs == 1 - labels[:, None]).all(axis=1)


def is_blank(measured: pd.DataFrame) -> Bools:
    """Return which patches hold next to no stained tissue."""
    return (measured["tissue_px"] < MIN_TISSUE_SHARE * measured["num_px"]).to_numpy()


def has_dark_band(measured: pd.DataFrame) -> Bools:
    """Return which patches have lines that are grey from side to side."""
    return (measured["dim_lines"] >= MIN_DIM_LINES).to_numpy()


def quality_flags(pack: Pack, measured: pd.DataFrame, around: NDArray[np.int64]) -> pd.DataFrame:
    """Return the hints at single patches.

    Returns:
        One row a hint, with columns ``kind``, ``row`` (position in the pack), ``patient``, ``x``,
        ``y``, ``label``, ``value`` (neighbours of the other label, share of tissue, grey lines) and
        ``path``; by kind, then in the order of the pack.
    """
    labels = pack.index["label"].to_numpy()
    found = {
        LABEL: (isolated_labels(labels, around), np.full(len(labels), len(_AROUND))),
        BLANK: (is_blank(measured), (measured["tissue_px"] / measured["num_px"]).to_numpy()),
        DARK_BAND: (has_dark_band(measured), measured["dim_lines"].to_numpy()),
    }
    parts = []
    for kind, (has, values) in found.items():
        rows = np.flatnonzero(has)
        parts.append(pd.DataFrame({"kind": kind, "row": rows, "value": values[rows].astype(float)}))
    table = pd.concat(parts, ignore_index=True)
    return with_locations(pack, table)[
        ["kind", "row", "patient", "x", "y", "label", "value", "path"]
    ]


def with_locations(pack: Pack, table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with patient, place, label and path of the patches in its column ``row``."""
    rows = table["row"].to_numpy(np.int64)
    paths = pack.paths() if len(rows) else []
    found = pack.index.iloc[rows].reset_index(drop=True)
    return table.assign(
        patient=pack.patient_of[rows],
        x=found["x"],
        y=found["y"],
        label=found["label"],
        path=[paths[row] for row in rows],
    )


def stain_table(pack: Pack, measured: pd.DataFrame) -> pd.DataFrame:
    """Return the stain of each patient, and how far it lies from that of the others.

    Returns:
        One row a patient: mean optical density of its tissue in each channel (``od_*``);
        ``stain_strength``, their mean; ``red_share`` and ``blue_share``, what the channel has of
        the sum (haematoxylin takes more red than eosin does); of these three the modified z-score,
        ``*_z``, NaN for a patient with few patches of tissue; ``stain_outlier``.
    """
    columns = ["tissue_px", *(f"od_{name}" for name in CHANNELS)]
    patient = pack.index["patient"].to_numpy()
    sums = measured[columns].groupby(patient).sum()
    od = sums[columns[1:]].div(sums["tissue_px"].where(sums["tissue_px"] > 0), axis=0) / OD_UNIT
    total = od.sum(axis=1, skipna=False)
    total = total.where(total > 0)
    table = od.assign(
        stain_strength=total / len(CHANNELS),
        red_share=od["od_red"] / total,
        blue_share=od["od_blue"] / total,
    )
    num_tissue = pd.Series(~is_blank(measured)).groupby(patient).sum()
    enough = num_tissue >= MIN_PATCHES_FOR_STAIN
    for name in STAIN_FEATURES:
        table[f"{name}_z"] = modified_z(table[name].where(enough).to_numpy(float))
    scores = table[[f"{name}_z" for name in STAIN_FEATURES]]
    table["stain_outlier"] = (scores.abs() > MAX_ABS_Z).any(axis=1)
    return table


def modified_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many robust standard deviations each value lies from the median.

    NaN stays NaN and does not count; where at least half of the values are equal, all are 0.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    deviation = values - np.median(known)
    spread = float(np.median(np.abs(known - np.median(known)))) * _MAD_TO_STD
    return deviation / spread if spread > 0 else deviation * 0
