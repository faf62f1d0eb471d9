"""Figures of the patches of a pack, such as sample patches and augmented patches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from wsi_idc.core.text import count
from wsi_idc.data.augmentation import augment, sample_params
from wsi_idc.data.pack import Pack
from wsi_idc.explore import quality
from wsi_idc.explore.tables import Description, label_names
from wsi_idc.geometry.grid import mosaic, scatter_to_grid
from wsi_idc.plotting.colors import LABEL_COLORS
from wsi_idc.plotting.raster import downscale
from wsi_idc.plotting.style import house_style, save_png, say_none

_SAMPLES = (5, 8)  # rows and columns of patches of each class
_AUGMENTED_DRAWS = 8
_MIN_TISSUE_SHARE = 0.5  # smallest fraction of tissue in a patch that shows the augmentation
_HINTS_SHOWN, _GROUPS_SHOWN, _GROUP_MEMBERS_SHOWN = 10, 10, 4
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
        chosen = _choose(candidates, label, num=rows * cols, seed=seed)
        _show_images(ax, pack.patches[chosen], cols=cols)
        num = f"{len(chosen)} of {len(candidates):,} patches"
        ax.set_title(f"{names[label]}: {num}, seed {seed}")
    return figure


def augmentation(description: Description, pack: Pack, *, seed: int) -> Figure:
    """Draw stored patches, and the same patches after the augmentations of training."""
    tissue = description.pixels.table["tissue_px"].to_numpy()
    rows = np.flatnonzero(tissue >= _MIN_TISSUE_SHARE * pack.info.patch_px**2)
    if not len(rows):
        rows = np.arange(len(pack))
    rows = _choose_of_each_label(pack, rows, num=2, seed=seed)
    figure = Figure(figsize=(9.6, 2 * len(rows) + 1), layout="constrained")
    for ax, name in zip(figure.subplots(2, 1), ("light", "strong"), strict=True):
        _draw_augmented(ax, pack, rows, name, seed=seed)
    return figure


def augmented_samples(
    pack: Pack, rows: NDArray[np.int64], name: str, *, seed: int, path: Path
) -> None:
    """Write a PNG file that shows some patches before and after the augmentation ``name``.

    The patches are chosen from ``rows``, positions in the pack. ``seed`` is the seed of the choice
    and of the augmentation.
    """
    chosen = _choose_of_each_label(pack, rows, num=3, seed=seed)
    with house_style():
        figure = Figure(figsize=(9.6, len(chosen) + 0.7), layout="constrained")
        _draw_augmented(figure.subplots(), pack, chosen, name, seed=seed)
        save_png(figure, path)


def _choose(rows: NDArray[np.int64], label: int, *, num: int, seed: int) -> NDArray[np.int64]:
    """Choose at most ``num`` of ``rows`` at random; the random seed is (``seed``, ``label``)."""
    rng = np.random.default_rng([seed, label + 1])
    return np.sort(rng.choice(rows, min(num, len(rows)), replace=False))


def _choose_of_each_label(
    pack: Pack, rows: NDArray[np.int64], *, num: int, seed: int
) -> NDArray[np.int64]:
    labels = pack.index["label"].to_numpy()[rows]
    chosen = [_choose(rows[labels == label], label, num=num, seed=seed) for label in (0, 1, -1)]
    return np.concatenate(chosen)


def _draw_augmented(ax: Axes, pack: Pack, rows: NDArray[np.int64], name: str, *, seed: int) -> None:
    """Draw one row of images per patch: the stored patch, then the patch after augmentation."""
    stored = pack.patches[rows]
    images = torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 255
    images = images.repeat_interleave(_AUGMENTED_DRAWS, dim=0)
    params = sample_params(name, len(images), generator=torch.Generator().manual_seed(seed))
    augmented = (augment(images, params) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    augmented = augmented.reshape(len(rows), _AUGMENTED_DRAWS, *stored.shape[1:])
    cols = 1 + _AUGMENTED_DRAWS
    tiles = np.concatenate([stored[:, None], augmented], axis=1).reshape(-1, *stored.shape[1:])
    cell = _show_images(ax, tiles, cols=cols)
    names, labels = label_names(pack), pack.index["label"].to_numpy()[rows]
    ax.set_xticks((np.arange(cols) + 0.5) * cell, ["stored", *map(str, range(1, cols))])
    ax.set_yticks((np.arange(len(rows)) + 0.5) * cell, [names[label] for label in labels])
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    ax.set_title(f"Augmentation {name}: {_AUGMENTED_DRAWS} draws of each patch, seed {seed}")


def mean_patches(description: Description, pack: Pack) -> Figure:
    """Draw the mean patch of each class twice: unchanged, and with stretched contrast."""
    means, names = description.pixels.mean_patches, label_names(pack)
    figure = Figure(figsize=(2.6 * max(len(means), 2), 5.4), layout="constrained")
    if not means:
        figure.text(0.5, 0.5, "no patch has the full size", ha="center")
        return figure
    axes = figure.subplots(2, len(means), squeeze=False)
    for (label, mean), column in zip(means.items(), axes.T, strict=True):
        span = np.ptp(mean, axis=(0, 1))
        stretched = (mean - mean.min(axis=(0, 1))) / np.where(span > 0, span, 1)
        for ax, image in zip(column, (mean, stretched), strict=True):
            ax.imshow(image, interpolation="nearest")
            _hide_axes(ax)
        column[0].set_title(names[label])
        column[1].set_title(f"contrast stretched, range {span.max():.3f}", fontsize=9)
    figure.suptitle("Mean of the patches of full size")
    return figure


def patient(description: Description, pack: Pack) -> Figure:
    """Draw the patches and the labels of one patient.

    The patient is the one with the most patches among the patients with both classes. If no
    patient has both classes, it is the one with the most patches of all. If the patient has several
    slides, only the slide with the most patches is drawn.
    """
    table = description.patients
    both = table[(table["idc"] > 0) & (table["non_idc"] > 0)]
    chosen = (table if both.empty else both).sort_values("patches", kind="stable").iloc[-1]
    rows = pack.rows_of(str(chosen["patient"]))
    slides = pack.index["slide"].to_numpy()[rows]
    rows = rows[slides == np.bincount(slides).argmax()]
    row_col = pack.cells()[rows]
    row_col -= row_col.min(axis=0)
    num_rows, num_cols = shape = (int(row_col[:, 0].max()) + 1, int(row_col[:, 1].max()) + 1)
    cell_mm = pack.info.patch_px * pack.info.mpp / 1000
    extent_mm = (0, cell_mm * num_cols, cell_mm * num_rows, 0)
    height = float(np.clip(5.1 * num_rows / num_cols, 2, 10))
    figure = Figure(figsize=(11, height + 1.5), layout="constrained")
    tissue_ax, label_ax = figure.subplots(1, 2, sharex=True, sharey=True)
    # Each patch is downscaled, so that the image stays below a maximum size.
    side = int(np.clip(_MAX_STITCHED_PX // max(shape), 1, pack.info.patch_px))
    small = np.stack([downscale(pack.patches[row], height=side, width=side) for row in rows])
    tissue_ax.imshow(mosaic(small, row_col, shape=shape, fill=_WHITE), extent=extent_mm)
    tissue_ax.set(title="Tissue", xlabel="mm", ylabel="mm")
    labels = pack.index["label"].to_numpy()[rows]
    grid = scatter_to_grid(labels.astype(float), row_col, shape=shape, fill=np.nan)
    colors = ListedColormap([LABEL_COLORS[label] for label in (-1, 0, 1)])
    norm = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)
    label_ax.imshow(grid, cmap=colors, norm=norm, extent=extent_mm, interpolation="nearest")
    label_ax.set(title="Labels", xlabel="mm")
    names = label_names(pack)
    handles = [
        Patch(color=LABEL_COLORS[label], label=f"{names[label]} ({(labels == label).sum():,})")
        for label in (0, 1, -1)
        if (labels == label).any()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    hint_rows = description.hints["row"][description.hints["kind"] == quality.LABEL]
    if len(ringed := row_col[np.isin(rows, hint_rows)]):
        y, x = (ringed.T + 0.5) * cell_mm
        label_ax.scatter(x, y, 90, facecolors="none", edgecolors="black", linewidths=1.5)
        label_ax.set_title("Labels; ring: differs from all 8 neighbors")
    resolution = f"{pack.info.mpp:g} µm/px ({pack.info.mpp_source})"
    figure.suptitle(f"Patient {chosen['patient']}: {len(rows):,} patches, {resolution}")
    return figure


def hints(description: Description, pack: Pack) -> Figure:
    """Draw some patches for each kind of hint. A hint is a reason why a patch may be wrong."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(len(quality.PATCH_KINDS), 1)
    for ax, kind in zip(axes, quality.PATCH_KINDS, strict=True):
        table = description.hints[description.hints["kind"] == kind]
        # The shown rows are evenly spaced, so they are from several patients.
        positions = np.linspace(0, len(table) - 1, min(len(table), _HINTS_SHOWN)).round()
        shown = table.iloc[positions.astype(int)]
        title = f"{kind} ({len(shown)} of {len(table):,} shown): {quality.RULES[kind]}"
        ax.set_title(title, loc="left")
        if table.empty:
            say_none(ax, "none found")
            _hide_axes(ax)
        elif kind == quality.LABEL:
            images = [_framed(neighborhood(pack, row)[0]) for row in shown["row"]]
            _show_images(ax, np.stack(images), cols=_HINTS_SHOWN)
        else:
            _show_images(ax, pack.patches[shown["row"].to_numpy()], cols=_HINTS_SHOWN)
    return figure


def near_duplicates(description: Description, pack: Pack) -> Figure:
    """Draw some groups of near-identical patches of different patients."""
    groups = [group for _, group in description.duplicates.groupby("group")]
    if not groups:
        figure = Figure(figsize=(10, 0.8))
        figure.text(0.5, 0.5, "No near-identical patches of different patients found", ha="center")
        return figure
    largest = max(len(group) for group in groups[:_GROUPS_SHOWN])
    num_rows = min(largest, _GROUP_MEMBERS_SHOWN)
    figure = Figure(figsize=(10, 0.5 + 1.2 * num_rows), layout="constrained")
    title = f"Near-identical patches of different patients: {count(len(groups), 'group')}, "
    title += f"{min(len(groups), _GROUPS_SHOWN)} shown, one per column, with patient ids"
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(num_rows, _GROUPS_SHOWN, squeeze=False)
    for ax in axes.flat:
        _hide_axes(ax)
    for column, group in zip(axes.T, groups, strict=False):
        # Show one patch of each patient first, then the other patches.
        ordered = group.iloc[np.argsort(group["patient"].duplicated(), kind="stable")]
        for ax, row, name in zip(column, ordered["row"], ordered["patient"], strict=False):
            ax.imshow(pack.patches[row], interpolation="nearest")
            ax.set_title(name, fontsize=8)
    return figure


def neighborhood(pack: Pack, row: int) -> tuple[Pixels, int]:
    """Assemble an image of the patch in row ``row`` of the pack and of its 8 neighbors.

    Returns:
        The image, and the number of neighbors that exist. The image has the shape (3 * patch_px,
        3 * patch_px, 3) and is white at missing neighbors.
    """
    slide = pack.index["slide"].to_numpy()
    rows = np.flatnonzero(slide == slide[row])
    cells = pack.cells()
    row_col = cells[rows] - cells[row] + 1
    is_near = ((row_col >= 0) & (row_col <= 2)).all(axis=1)
    row_col = row_col[is_near]
    image = mosaic(pack.patches[rows[is_near]], row_col, shape=(3, 3), fill=_WHITE)
    return image, int(is_near.sum()) - 1


def _framed(image: Pixels) -> Pixels:
    """Draw a black frame along the edge of the middle patch of ``image`` (3 x 3 patches)."""
    side = len(image) // 3
    middle = image[side:-side, side:-side]
    middle[[0, 1, -2, -1]] = 0
    middle[:, [0, 1, -2, -1]] = 0
    return image


def _show_images(ax: Axes, images: Pixels, *, cols: int) -> float:
    """Draw ``cols`` images per row, with gray frames; return the side of a framed image in px."""
    num, side = images.shape[:2]
    row_col = np.column_stack(np.divmod(np.arange(num), cols)).astype(np.int32)
    gap = max(2, side // 20)
    framed = np.full((num, side + 2 * gap, side + 2 * gap, 3), _FRAME, np.uint8)
    framed[:, gap:-gap, gap:-gap] = images
    sheet = mosaic(framed, row_col, shape=(-(-num // cols), cols), fill=_WHITE)
    ax.imshow(sheet, interpolation="nearest")
    _hide_axes(ax)
    return sheet.shape[1] / cols


def _hide_axes(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


PATCH_FIGURES: dict[str, Callable[[Description, Pack], Figure]] = {
    function.__name__: function for function in (mean_patches, patient, hints, near_duplicates)
}
