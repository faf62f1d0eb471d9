"""Hints at possible errors of a data set: patches and patients to look at, not verdicts.

A pair of near-duplicates is found by its perceptual hash (at most 3 of 63 bits differ) and
confirmed by its pixels (correlation of gray values of at least 0.95). This finds the same image at
the same place in its patch, also if it is brighter, darker or compressed again. It does not find an
image that is shifted, rotated or flipped: of 2,000 real patches it found all when they were
darkened, 99 % after JPEG compression of quality 90, 95 % of quality 70, but 16 % when they were
shifted by one pixel.

Hashes that differ in at most 3 bits agree on at least three of six parts, so only patches that
agree on three parts are compared: the time grows with the number of patches, not with its square.
"""

import itertools
import logging
from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsi_idc.data.pack import Pack
from wsi_idc.explore.pixel_statistics import CHANNELS, OD_UNIT
from wsi_idc.geometry.grid import MAX_CELLS_PER_SIDE

logger = logging.getLogger(__name__)

LABEL, BLANK, DARK_BAND, STAIN = "label", "blank", "dark band", "stain"
PATCH_KINDS = (LABEL, BLANK, DARK_BAND)

MAX_BITS_APART = 3
MIN_CORRELATION = 0.95
_NUM_PARTS = 6
# Each patch is compared with at most this number of following patches that agree on three parts.
_MAX_COMPARED = 500
_PAIRS_AT_A_TIME = 4096
DUPLICATE_METHOD = (
    f"signs of the 63 lowest DCT coefficients of the grey patch, at most {MAX_BITS_APART} bits "
    f"apart, confirmed by a correlation of the pixels of at least {MIN_CORRELATION}; patches "
    "without tissue are not compared; copies that are shifted, turned or flipped are not found"
)

MIN_TISSUE_SHARE = 0.02
MIN_DIM_LINES = 3
# Iglewicz & Hoaglin, How to Detect and Handle Outliers (1993): modified z-scores above 3.5.
MAX_ABS_Z = 3.5
# With fewer patches of tissue the values depend more on the patches than on the stain.
MIN_PATCHES_FOR_STAIN = 10
STAIN_FEATURES = ("stain_strength", "red_share", "blue_share")
# Ratio of standard deviation and median absolute deviation of a normal distribution.
_MAD_TO_STD = 1.4826
_OFFSETS = tuple((row, col) for row in (-1, 0, 1) for col in (-1, 0, 1) if (row, col) != (0, 0))

RULES = {
    LABEL: "all 8 neighbours are there and carry the other label",
    BLANK: f"less than {MIN_TISSUE_SHARE:.0%} of the pixels are stained tissue",
    DARK_BAND: f"{MIN_DIM_LINES} or more lines of pixels are grey from side to side, as at the "
    "edge of the glass",
    STAIN: f"a modified z-score beyond {MAX_ABS_Z} among the patients",
}

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def neighbor_index(pack: Pack) -> Ints:
    """Find the positions of the 8 patches around each patch.

    Returns:
        Positions in the pack, row by row, shape (N, 8); -1 for a missing neighbor.
    """
    # A border of one empty cell separates the end of a row from the start of the next one.
    stride = MAX_CELLS_PER_SIDE + 2
    row_col = pack.cells()
    patient = pack.index["patient"].to_numpy(np.int64)
    keys = (patient * stride + row_col[:, 0] + 1) * stride + row_col[:, 1] + 1
    order = np.argsort(keys, kind="stable")
    neighbors = np.full((len(keys), len(_OFFSETS)), -1)
    for column, (row, col) in enumerate(_OFFSETS):
        neighbor_keys = keys + row * stride + col
        place = np.searchsorted(keys, neighbor_keys, sorter=order).clip(max=len(keys) - 1)
        candidate = order[place]
        neighbors[:, column] = np.where(keys[candidate] == neighbor_keys, candidate, -1)
    return neighbors


def isolated_labels(labels: NDArray[np.int8], neighbors: Ints) -> Bools:
    """Find the patches with 8 neighbors that all have the other label.

    Args:
        labels: 0, 1, or -1 unknown, shape (N,).
        neighbors: Positions of the neighbors, shape (N, 8), -1 for a missing one.
    """
    neighbor_labels = np.where(neighbors >= 0, labels[neighbors], -1)
    return (labels >= 0) & (neighbor_labels == 1 - labels[:, None]).all(axis=1)


def is_blank(pixel_table: pd.DataFrame) -> Bools:
    """Find the patches with almost no stained tissue."""
    return (pixel_table["tissue_px"] < MIN_TISSUE_SHARE * pixel_table["num_px"]).to_numpy()


def quality_flags(pack: Pack, pixel_table: pd.DataFrame, neighbors: Ints) -> pd.DataFrame:
    """Find the hints at single patches.

    Args:
        pack: The pack.
        pixel_table: ``PixelStatistics.table`` of the pack.
        neighbors: ``neighbor_index`` of the pack.

    Returns:
        One row per hint with columns ``kind``, ``row`` (position in the pack), ``patient``, ``x``,
        ``y``, ``label``, ``value`` (number of neighbors of the other label, share of tissue, or
        number of gray lines) and ``path``; sorted by kind, then by row.
    """
    labels, dim_lines = pack.index["label"].to_numpy(), pixel_table["dim_lines"].to_numpy()
    tissue_share = (pixel_table["tissue_px"] / pixel_table["num_px"]).to_numpy()
    flags_and_values = {
        LABEL: (isolated_labels(labels, neighbors), np.full(len(labels), len(_OFFSETS))),
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
    """Add patient, x, y, label and path of the patches in the column ``row`` of a table."""
    rows = table["row"].to_numpy(np.int64)
    paths = pack.paths() if len(rows) else []
    columns = pack.index.iloc[rows].reset_index(drop=True)[["x", "y", "label"]]
    return table.assign(patient=pack.patient_of[rows], **columns, path=[paths[row] for row in rows])


def stain_table(pack: Pack, pixel_table: pd.DataFrame) -> pd.DataFrame:
    """Compare the stain of each patient with that of the others.

    Args:
        pack: The pack.
        pixel_table: ``PixelStatistics.table`` of the pack.

    Returns:
        One row per patient: mean optical density of the tissue in each channel (``od_*``);
        ``stain_strength``, their mean; ``red_share`` and ``blue_share``, the channel's share of
        their sum (hematoxylin absorbs more red than eosin does); the modified z-score of these
        three, ``*_z``, NaN for a patient with few patches of tissue; ``stain_outlier``.
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
    """Compute the distance of each value from the median in robust standard deviations.

    NaN stays NaN and does not count. If at least half of the values are equal, all scores are 0.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    deviation = values - np.median(known)
    spread = float(np.median(np.abs(known - np.median(known)))) * _MAD_TO_STD
    return deviation / spread if spread > 0 else deviation * 0


def find_duplicates(pack: Pack, hashes: NDArray[np.uint64], candidates: Ints) -> pd.DataFrame:
    """Find groups of near-identical patches that include two patients or more.

    Args:
        pack: The pack.
        hashes: Perceptual hash of each patch of the pack, shape (N,).
        candidates: Positions of the patches to compare. Patches without tissue, which are all
            alike, should not be among them.

    Returns:
        One row per patch with columns ``group`` (from 1), ``row`` (its position in the pack),
        ``bits_apart`` and ``correlation`` (with the first patch of its group; NaN for the first).
    """
    unique, first_index, inverse = np.unique(
        hashes[candidates], return_index=True, return_inverse=True
    )
    example = candidates[first_index]  # of each hash
    same = np.column_stack([example[inverse], candidates])
    near = example[near_pairs(unique)]
    links = np.concatenate([same[same[:, 0] != same[:, 1]], near])
    links = links[_correlations(pack, links) >= MIN_CORRELATION]
    size = len(pack)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    patients = pack.index["patient"].groupby(component)
    rows = np.flatnonzero(patients.transform("nunique") >= 2)
    group = pd.factorize(component[rows])[0] + 1
    first = pd.Series(rows).groupby(group).transform("first").to_numpy()
    correlation = _correlations(pack, np.column_stack([first, rows]))
    return pd.DataFrame(
        {
            "group": group,
            "row": rows,
            "bits_apart": bits_apart(hashes[first], hashes[rows]),
            "correlation": np.where(rows == first, np.nan, correlation),
        }
    ).sort_values(["group", "row"], ignore_index=True)


def near_pairs(hashes: NDArray[np.uint64]) -> Ints:
    """Find the pairs of hashes that differ in at most ``MAX_BITS_APART`` bits.

    Args:
        hashes: Distinct hashes, shape (N,).

    Returns:
        Positions i < j, shape (P, 2), sorted.
    """
    pair_lists = [np.zeros((0, 2), np.int64)]
    is_truncated = False
    edges = np.linspace(0, 64, _NUM_PARTS + 1).astype(int)
    parts = [(1 << int(stop)) - (1 << int(start)) for start, stop in itertools.pairwise(edges)]
    for chosen in itertools.combinations(parts, _NUM_PARTS - MAX_BITS_APART):
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        for step, (earlier, later) in enumerate(_equal_pairs(keys[order])):
            if step == _MAX_COMPARED:
                is_truncated = True
                break
            pairs = np.column_stack([order[earlier], order[later]])
            apart = bits_apart(hashes[pairs[:, 0]], hashes[pairs[:, 1]])
            pair_lists.append(np.sort(pairs[apart <= MAX_BITS_APART], axis=1))
    if is_truncated:
        logger.warning("many patches look alike: not every pair was compared")
    return np.unique(np.concatenate(pair_lists), axis=0)


def bits_apart(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> Ints:
    """Count the bits in which two arrays of hashes differ, element by element."""
    differing = np.ascontiguousarray(a ^ b).view(np.uint8).reshape(-1, 8)
    return np.unpackbits(differing, axis=1).sum(axis=1, dtype=np.int64)


def _equal_pairs(keys: NDArray[np.uint64]) -> Iterator[tuple[Ints, Ints]]:
    """Yield the positions of the pairs of equal keys of a sorted array, adjacent ones first."""
    earlier = np.arange(len(keys))
    for step in itertools.count(1):
        earlier = earlier[earlier + step < len(keys)]
        earlier = earlier[keys[earlier] == keys[earlier + step]]
        if not len(earlier):
            return
        yield earlier, earlier + step


def _correlations(pack: Pack, pairs: Ints) -> NDArray[np.float64]:
    """Compute the correlation of the gray values of each pair of patches, 0 for a uniform one."""
    parts = [np.zeros(0)]
    for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
        a, b = (_standardized(pack, rows) for rows in pairs[start : start + _PAIRS_AT_A_TIME].T)
        parts.append((a * b).mean(axis=(1, 2)))
    return np.concatenate(parts)


def _standardized(pack: Pack, rows: Ints) -> NDArray[np.float64]:
    """Return gray patches with mean 0 and standard deviation 1, shape (n, side, side)."""
    side = pack.info.patch_px
    gray = cv2.cvtColor(pack.patches[rows].reshape(-1, side, 3), cv2.COLOR_RGB2GRAY)
    values = gray.reshape(-1, side, side).astype(np.float64)
    values -= values.mean(axis=(1, 2), keepdims=True)
    deviation = values.std(axis=(1, 2), keepdims=True)
    return values / np.where(deviation > 0, deviation, 1)
