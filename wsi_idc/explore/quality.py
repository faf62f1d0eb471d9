"""Find hints at possible errors of a data set. A hint is a reason to check a patch or a patient."""

import logging

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_idc.data.pack import Pack
from wsi_idc.explore.duplicates import Ints
from wsi_idc.explore.pixel_statistics import CHANNELS, OD_UNIT
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

logger = logging.getLogger(__name__)
LABEL, BLANK, DARK_BAND, STAIN = "label", "blank", "dark band", "stain"
PATCH_KINDS = (LABEL, BLANK, DARK_BAND)
MIN_TISSUE_SHARE = 0.02
MIN_DIM_LINES = 3
# Limit for outliers from Iglewicz & Hoaglin, How to Detect and Handle Outliers (1993).
MAX_ABS_Z = 3.5
# With fewer patches of tissue, the stain statistics depend more on these patches than on the stain.
MIN_PATCHES_FOR_STAIN = 10
STAIN_FEATURES = ("stain_strength", "red_share", "blue_share")
# For a normal distribution, the standard deviation divided by the median absolute deviation.
_MAD_TO_STD = 1.4826
_OFFSETS = tuple((row, col) for row in (-1, 0, 1) for col in (-1, 0, 1) if (row, col) != (0, 0))
RULES = {
    LABEL: "all 8 neighbors exist and have the other label",
    BLANK: f"less than {MIN_TISSUE_SHARE:.0%} of the pixels are stained tissue",
    DARK_BAND: f"{MIN_DIM_LINES} or more lines of pixels are gray from side to side, as at the "
    "edge of the glass",
    STAIN: f"a modified z-score among the patients is above {MAX_ABS_Z} or below -{MAX_ABS_Z}",
}


def neighbor_index(pack: Pack) -> Ints:
    """Find the 8 patches around each patch; return their positions in the pack, shape (N, 8).

    The order of the neighbors is row by row. The position of a missing neighbor is -1.
    """
    # A border of one empty cell separates the end of a row from the start of the next row.
    stride = MAX_CELLS_PER_SIDE + 2
    row_col = pack.cells()
    slide = pack.index["slide"].to_numpy(np.int64)
    keys = (slide * stride + row_col[:, 0] + 1) * stride + row_col[:, 1] + 1
    order = np.argsort(keys, kind="stable")
    neighbors = np.full((len(keys), len(_OFFSETS)), -1)
    for column, (row, col) in enumerate(_OFFSETS):
        neighbor_keys = keys + row * stride + col
        place = np.searchsorted(keys, neighbor_keys, sorter=order).clip(max=len(keys) - 1)
        candidate = order[place]
        neighbors[:, column] = np.where(keys[candidate] == neighbor_keys, candidate, -1)
    return neighbors


def is_blank(pixel_table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return an array of shape (N,): True for a patch that has almost no stained tissue."""
    return (pixel_table["tissue_px"] < MIN_TISSUE_SHARE * pixel_table["num_px"]).to_numpy()


def quality_flags(pack: Pack, pixel_table: pd.DataFrame, neighbors: Ints) -> pd.DataFrame:
    """Find hints. A hint is a reason why a patch is unusual; ``RULES`` has the rule of each kind.

    ``pixel_table`` is ``PixelStatistics.table``; ``neighbors`` is from ``neighbor_index``.

    Returns:
        One row per hint, sorted by kind, then by row. Columns: ``kind``, ``row`` (position of the
        patch in the pack), ``patient``, ``x``, ``y``, ``label``, ``value`` and ``path``. ``value``
        depends on the kind: the number of neighbors with the other label, the share of stained
        tissue, or ``dim_lines``.
    """
    labels, dim_lines = pack.index["label"].to_numpy(), pixel_table["dim_lines"].to_numpy()
    tissue_share = (pixel_table["tissue_px"] / pixel_table["num_px"]).to_numpy()
    neighbor_labels = np.where(neighbors >= 0, labels[neighbors], -1)
    is_isolated = (labels >= 0) & (neighbor_labels == 1 - labels[:, None]).all(axis=1)
    flags_and_values = {
        LABEL: (is_isolated, np.full(len(labels), len(_OFFSETS))),
        BLANK: (is_blank(pixel_table), tissue_share),
        DARK_BAND: (dim_lines >= MIN_DIM_LINES, dim_lines),
    }
    parts = []
    for kind, (is_flagged, values) in flags_and_values.items():
        rows = np.flatnonzero(is_flagged)
        parts.append(pd.DataFrame({"kind": kind, "row": rows, "value": values[rows].astype(float)}))
    table = with_locations(pack, pd.concat(parts, ignore_index=True))
    return table[["kind", "row", "patient", "x", "y", "label", "value", "path"]]


def with_locations(pack: Pack, table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns patient, x, y, label and path to ``table``, which has one row per patch.

    The column ``row`` of ``table`` is the position of the patch in the pack. If the patches are
    from slides, ``path`` is the path of the slide.
    """
    rows = table["row"].to_numpy(np.int64)
    paths = pack.paths() if len(rows) else []
    columns = pack.index.iloc[rows].reset_index(drop=True)[["x", "y", "label"]]
    return table.assign(patient=pack.patient_of[rows], **columns, path=[paths[row] for row in rows])


def stain_table(pack: Pack, pixel_table: pd.DataFrame) -> pd.DataFrame:
    """Compare the stain of each patient with the stain of the other patients.

    ``pixel_table`` is ``PixelStatistics.table`` of the pack.

    Returns:
        One row per patient. Columns: ``od_*``, mean optical density of the tissue in each channel;
        ``stain_strength``, mean of the three densities; ``red_share`` and ``blue_share``, density
        of a channel divided by the sum of the three densities (hematoxylin absorbs more red than
        eosin does); ``stain_strength_z``, ``red_share_z`` and ``blue_share_z``, modified z-scores
        (NaN for a patient with few patches of tissue); ``stain_outlier``, True if the absolute
        value of one of these z-scores is above ``MAX_ABS_Z``.
    """
    columns = ["tissue_px", *(f"od_{name}" for name in CHANNELS)]
    patient = pack.index["patient"].to_numpy()
    sums = pixel_table[columns].groupby(patient).sum()
    od = sums[columns[1:]].div(sums["tissue_px"].where(sums["tissue_px"] > 0), axis=0) / OD_UNIT
    total = od.sum(axis=1, skipna=False)
    total = total.where(total > 0)
    table = od.assign(
        stain_strength=total / len(CHANNELS),
        red_share=od["od_red"] / total,
        blue_share=od["od_blue"] / total,
    )
    num_tissue = pd.Series(~is_blank(pixel_table)).groupby(patient).sum()
    has_enough = num_tissue >= MIN_PATCHES_FOR_STAIN
    for name in STAIN_FEATURES:
        table[f"{name}_z"] = modified_z(table[name].where(has_enough).to_numpy(float))
    scores = table[[f"{name}_z" for name in STAIN_FEATURES]]
    table["stain_outlier"] = (scores.abs() > MAX_ABS_Z).any(axis=1)
    return table


def modified_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the modified z-score of each value.

    The score is the distance from the median, divided by a robust estimate of the standard
    deviation. The score of NaN is NaN, and NaN does not change the scores of numbers. If more than
    half of the numbers are equal, the score of every number is 0.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    deviation = values - np.median(known)
    spread = float(np.median(np.abs(known - np.median(known)))) * _MAD_TO_STD
    return deviation / spread if spread > 0 else deviation * 0
