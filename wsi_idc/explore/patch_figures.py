"""Draw patches of a pack: samples, augmented, means, a patient, what the hints point at."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from wsi_idc.data.augmentation import augment, sample_params
from wsi_idc.data.pack import Pack
from wsi_idc.explore import quality as audit
from wsi_idc.explore.charts import COLOURS, label_names
from wsi_idc.explore.tables import Description
from wsi_idc.geometry.grid import mosaic, scatter_to_grid
from wsi_idc.plotting.style import house_style, save_png

_SAMPLES = (5, 8)  # rows, cols of each class
_AUGMENTED_DRAWS = 8
_MIN_TISSUE_SHARE = 0.5  # of a patch that shows what augmentation does
_HINTS_SHOWN = 10
_GROUPS_SHOWN = 10
_GROUP_MEMBERS_SHOWN = 4
_MAX_STITCHED_PX = 1600
_WHITE, _FRAME = 255, 222

Pixels = NDArray[np.uint8]


def samples(description: Description, pack: Pack, *, seed: int) -> Figure:
    """Draw random patches of each class."""
    labels = pack.index["label"].to_numpy()
    names = label_names(pack)
    present = [label for label in (0, 1, -1) if (labels == label).any()]
    figure = Figure(figsize=(5.2 * len(present), 3.9), layout="constrained")
    axes = figure.subplots(1, len(present), squeeze=False)[0]
    rows, cols = _SAMPLES
    for ax, label in zip(axes, present, strict=True):
        candidates = np.flatnonzero(labels == label)
        # A label has a stream of its own: what is drawn of one does not depend on the others.
        rng = np.random.default_rng([seed, label + 1])
        num = min(rows * cols, len(candidates))
        chosen = np.sort(rng.choice(candidates, num, replace=False))
        ax.imshow(_tile_images(pack.patches[chosen], cols=cols), interpolation="nearest")
        ax.set_title(f"{names[label]}: {num} of {len(candidates):,} patches, seed {seed}")
        _hide_axes(ax)
    return figure


def augmentation(description: Description, pack: Pack, *, seed: int) -> Figure:
    """Draw patches as they are and as each augmentation shows them in training."""
    tissue = description.measures.table["tissue_px"].to_numpy()
    rows = np.flatnonzero(tissue >= _MIN_TISSUE_SHARE * pack.info.patch_px**2)
    if not len(rows):
        rows = np.arange(len(pack))
    rows = _some_of_each_class(pack, rows, num=2, seed=seed)
    figure = Figure(figsize=(9.6, 2 * len(rows) + 1), layout="constrained")
    for ax, name in zip(figure.subplots(2, 1), ("light", "strong"), strict=True):
        _draw_augmented(ax, pack, rows, name, seed=seed)
    return figure


def augmented_samples(
    pack: Pack, rows: NDArray[np.int64], name: str, *, seed: int, path: Path
) -> None:
    """Write a PNG of some of the patches ``rows`` as the augmentation ``name`` shows them."""
    chosen = _some_of_each_class(pack, rows, num=3, seed=seed)
    with house_style():
        figure = Figure(figsize=(9.6, len(chosen) + 0.7), layout="constrained")
        _draw_augmented(figure.subplots(), pack, chosen, name, seed=seed)
        save_png(figure, path)


def _some_of_each_class(
    pack: Pack, rows: NDArray[np.int64], *, num: int, seed: int
) -> NDArray[np.int64]:
    """Return up to ``num`` random ones of ``rows`` of each label."""
    labels = pack.index["label"].to_numpy()[rows]
    chosen = []
    for label in (0, 1, -1):
        some = rows[labels == label]
        rng = np.random.default_rng([seed, label + 1])
        chosen.append(np.sort(rng.choice(some, min(num, len(some)), replace=False)))
    return np.concatenate(chosen)


def _draw_augmented(ax: Axes, pack: Pack, rows: NDArray[np.int64], name: str, *, seed: int) -> None:
    """Draw one patch a row: as it is stored, then as ``name`` draws it."""
    stored = pack.patches[rows]
    images = torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 255
    images = images.repeat_interleave(_AUGMENTED_DRAWS, dim=0)
    draws = sample_params(name, len(images), generator=torch.Generator().manual_seed(seed))
    shown = (augment(images, draws) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    shown = shown.reshape(len(rows), _AUGMENTED_DRAWS, *stored.shape[1:])
    cols = 1 + _AUGMENTED_DRAWS
    pictures = np.concatenate([stored[:, None], shown], axis=1).reshape(-1, *stored.shape[1:])
    sheet = _tile_images(pictures, cols=cols)
    ax.imshow(sheet, interpolation="nearest")
    _hide_axes(ax)
    cell = sheet.shape[1] / cols
    names, labels = label_names(pack), pack.index["label"].to_numpy()[rows]
    ax.set_xticks((np.arange(cols) + 0.5) * cell, ["stored", *map(str, range(1, cols))])
    ax.set_yticks((np.arange(len(rows)) + 0.5) * cell, [names[label] for label in labels])
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    ax.set_title(f"Augmentation {name}: {_AUGMENTED_DRAWS} draws of each patch, seed {seed}")


def mean_patches(description: Description, pack: Pack) -> Figure:
    """Draw the mean patch of each class, as it is and with its contrast stretched."""
    means, names = description.measures.mean_patches, label_names(pack)
    figure = Figure(figsize=(2.6 * max(len(means), 2), 5.4), layout="constrained")
    if not means:
        figure.text(0.5, 0.5, "no patch is of full size", ha="center")
        return figure
    axes = figure.subplots(2, len(means), squeeze=False)
    for (label, mean), column in zip(means.items(), axes.T, strict=True):
        span = np.ptp(mean, axis=(0, 1))
        stretched = (mean - mean.min(axis=(0, 1))) / np.where(span > 0, span, 1)
        for ax, picture in zip(column, (mean, stretched), strict=True):
            ax.imshow(picture, interpolation="nearest")
            _hide_axes(ax)
        column[0].set_title(names[label])
        column[1].set_title(f"contrast stretched, range {span.max():.3f}", fontsize=9)
    figure.suptitle("Mean of the patches of full size")
    return figure


def patient(description: Description, pack: Pack) -> Figure:
    """Draw the patient with the most patches, of those with both classes if there are any."""
    table = description.patients
    both = table[(table["idc"] > 0) & (table["non_idc"] > 0)]
    chosen = (table if both.empty else both).sort_values("patches", kind="stable").iloc[-1]
    rows = pack.rows_of(str(chosen["patient"]))
    row_col = pack.cells()[rows]
    row_col -= row_col.min(axis=0)
    shape = (int(row_col[:, 0].max()) + 1, int(row_col[:, 1].max()) + 1)
    extent_mm = pack.info.patch_px * pack.info.mpp / 1000 * np.array([0, shape[1], shape[0], 0])
    height = float(np.clip(5.1 * shape[0] / shape[1], 2, 10))
    figure = Figure(figsize=(11, height + 1.5), layout="constrained")
    tissue, labels = figure.subplots(1, 2, sharex=True, sharey=True)
    tissue.imshow(_stitch(pack, rows, row_col, shape), extent=tuple(extent_mm))
    tissue.set(title="Tissue", xlabel="mm", ylabel="mm")
    _draw_labels(labels, pack, rows, row_col, shape, extent_mm)
    marked = description.hints["row"][description.hints["kind"] == audit.LABEL]
    _mark(labels, row_col[np.isin(rows, marked)], extent_mm[1] / shape[1])
    figure.suptitle(
        f"Patient {chosen['patient']}: {len(rows):,} patches, {pack.info.mpp:g} um/px "
        f"({pack.info.mpp_source})"
    )
    return figure


def hints(description: Description, pack: Pack) -> Figure:
    """Draw some of the patches that each kind of hint points at."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(len(audit.PATCH_KINDS), 1)
    around = description.neighbours
    for ax, kind in zip(axes, audit.PATCH_KINDS, strict=True):
        rows = description.hints["row"][description.hints["kind"] == kind].to_numpy()
        shown = _sample_evenly(rows, _HINTS_SHOWN)
        ax.set_title(
            f"{kind} ({len(shown)} of {len(rows):,} shown): {audit.RULES[kind]}", loc="left"
        )
        if not len(rows):
            ax.text(0.5, 0.5, "none found", transform=ax.transAxes, ha="center", va="center")
        elif kind == audit.LABEL:
            pictures = np.stack([_surroundings(pack, row, around[row]) for row in shown])
            ax.imshow(_tile_images(pictures, cols=_HINTS_SHOWN), interpolation="nearest")
        else:
            ax.imshow(_tile_images(pack.patches[shown], cols=_HINTS_SHOWN), interpolation="nearest")
        _hide_axes(ax)
    return figure


def near_duplicates(description: Description, pack: Pack) -> Figure:
    """Draw some of the groups of patches that look the same in several patients."""
    table = description.duplicates
    groups = [group for _, group in table.groupby("group")]
    if not groups:
        figure = Figure(figsize=(10, 0.8))
        figure.text(0.5, 0.5, "No near-identical patches of different patients found", ha="center")
        return figure
    largest = max(len(group) for group in groups[:_GROUPS_SHOWN])
    num_rows = min(largest, _GROUP_MEMBERS_SHOWN)
    figure = Figure(figsize=(10, 0.5 + 1.2 * num_rows), layout="constrained")
    figure.suptitle(
        f"Near-identical patches of different patients: {len(groups):,} groups, "
        f"{min(len(groups), _GROUPS_SHOWN)} shown, one a column, named by patient",
        fontsize=11,
    )
    axes = figure.subplots(num_rows, _GROUPS_SHOWN, squeeze=False)
    for ax in axes.flat:
        _hide_axes(ax)
    for column, group in zip(axes.T, groups, strict=False):
        some = _several_patients(group)
        for ax, row, name in zip(column, some["row"], some["patient"], strict=False):
            ax.imshow(pack.patches[row], interpolation="nearest")
            ax.set_title(name, fontsize=8)
    return figure


def _several_patients(group: pd.DataFrame) -> pd.DataFrame:
    """Return a group with one member of each patient first."""
    return group.iloc[np.argsort(group["patient"].duplicated(), kind="stable")]


def _stitch(
    pack: Pack, rows: NDArray[np.int64], row_col: NDArray[np.int32], shape: tuple[int, int]
) -> Pixels:
    """Return a patient's tissue, each patch shrunk so that the whole stays below a size."""
    side = int(np.clip(_MAX_STITCHED_PX // max(shape), 1, pack.info.patch_px))
    small = np.stack(
        [cv2.resize(pack.patches[row], (side, side), interpolation=cv2.INTER_AREA) for row in rows]
    )
    return mosaic(small, row_col, shape=shape, fill=_WHITE)


def _draw_labels(
    ax: Axes,
    pack: Pack,
    rows: NDArray[np.int64],
    row_col: NDArray[np.int32],
    shape: tuple[int, int],
    extent_mm: NDArray[np.float64],
) -> None:
    labels = pack.index["label"].to_numpy()[rows]
    grid = scatter_to_grid(labels.astype(float), row_col, shape=shape, fill=np.nan)
    colours = ListedColormap([COLOURS[label] for label in (-1, 0, 1)])
    norm = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)
    ax.imshow(grid, cmap=colours, norm=norm, extent=tuple(extent_mm), interpolation="nearest")
    names = label_names(pack)
    handles = [
        Patch(color=COLOURS[label], label=f"{names[label]} ({(labels == label).sum():,})")
        for label in (0, 1, -1)
        if (labels == label).any()
    ]
    assert isinstance(ax.figure, Figure)
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    ax.set(title="Labels", xlabel="mm")


def _mark(ax: Axes, row_col: NDArray[np.int32], cell_mm: float) -> None:
    """Ring the cells that the label hints point at."""
    if len(row_col):
        y, x = (row_col.T + 0.5) * cell_mm
        ax.scatter(x, y, 90, facecolors="none", edgecolors="black", linewidths=1.5)
        ax.set_title("Labels; ringed: unlike all 8 neighbours")


def _surroundings(pack: Pack, row: int, around: NDArray[np.int64]) -> Pixels:
    """Return a patch framed in black amid its 8 neighbours."""
    side = pack.info.patch_px
    nine = pack.patches[np.insert(around, 4, row)]  # the patch is the middle one
    nine[4, [0, 1, -2, -1]] = 0
    nine[4][:, [0, 1, -2, -1]] = 0
    return nine.reshape(3, 3, side, side, 3).swapaxes(1, 2).reshape(3 * side, 3 * side, 3)


def _tile_images(patches: Pixels, *, cols: int) -> Pixels:
    """Return patches in rows of ``cols``, framed in grey: white is a patch or its padding."""
    num, side = patches.shape[:2]
    row_col = np.column_stack(np.divmod(np.arange(num), cols)).astype(np.int32)
    gap = max(2, side // 20)
    framed = np.full((num, side + 2 * gap, side + 2 * gap, 3), _FRAME, np.uint8)
    framed[:, gap:-gap, gap:-gap] = patches
    return mosaic(framed, row_col, shape=(-(-num // cols), cols), fill=_WHITE)


def _sample_evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most ``count`` of ``rows``, evenly spread: not all of one patient."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _hide_axes(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


PICTURES: dict[str, Callable[[Description, Pack], Figure]] = {
    function.__name__: function for function in (mean_patches, patient, hints, near_duplicates)
}
