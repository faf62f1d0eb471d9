"""What the panels of a picture show: a map in, colours and lines and their keys out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from wsi_idc.geometry.grid import mosaic
from wsi_idc.geometry.regions import region_boundary
from wsi_idc.maps.layers import robust_max
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import COLORMAPS, LABEL_COLORS
from wsi_idc.plotting.raster import (
    NUM_COLORS,
    Pixels,
    color_table,
    downscale,
    overlay_colormap,
    to_gray,
)
from wsi_idc.plotting.style import printable

_OPACITY = 0.5
# What is next to nothing should hide nothing, and weak spots should still be seen.
_CAM_OPACITY = 0.85 * np.sqrt(np.linspace(0, 1, NUM_COLORS))
_METHODS = {"gradcam": "Grad-CAM"}
_WHITE = 255
# Where both outlines run along the same edge, the narrow one lies on the wide one.
_LABELLED, _LABELLED_PT = "#ffd400", 3.0
_CALLED, _CALLED_PT = "#0b1f66", 1.0
_MASK, _MASK_PT = "#0b1f66", 0.5
_LONGEST_NAME = 16


@dataclass(frozen=True)
class PanelInput:
    """What all panels of a picture are drawn from.

    Attributes:
        content: The map, its grid beginning with the first row and column that have a patch.
        tissue: Stitched tissue, shape (rows * cell_px, cols * cell_px, 3); grey patches on white
            where the map has no image.
        has_image: Whether it has.
        cell_px: Side of a cell in ``tissue``.
        threshold: Probability from which a patch is called IDC.
    """

    content: PatientMap
    tissue: Pixels
    has_image: bool
    cell_px: int
    threshold: float


@dataclass(frozen=True)
class ColorBar:
    """A colour bar from 0 to ``top``; ``colours`` of shape (256, 3)."""

    colours: Pixels
    top: float
    caption: str
    threshold: float | None = None
    is_open: bool = False  # there are values above the top


@dataclass(frozen=True)
class LegendEntry:
    """An entry of a legend: an area, or a line of a width in pt."""

    name: str
    colour: str
    width_pt: float | None = None


Key: TypeAlias = ColorBar | tuple[LegendEntry, ...]


@dataclass(frozen=True)
class Outline:
    """Lines over a picture: their ends, shape (N, 2, 2), in the panel's unit."""

    ends: NDArray[np.int64]
    colour: str
    width_pt: float


@dataclass(frozen=True)
class Panel:
    """A picture with lines over it and a key below.

    Attributes:
        title: Stands above it.
        picture: RGB of the whole panel, of any number of px.
        size: Width and height in the panel's unit: cells of the grid, or px of a thumbnail.
        unit_mm: Of tissue.
        key: What the colours mean.
        outlines: The later lie over the earlier.
        has_scale: Whether a scale bar is drawn.
    """

    title: str
    picture: Pixels
    size: tuple[int, int]
    unit_mm: float
    key: Key = ()
    outlines: tuple[Outline, ...] = ()
    has_scale: bool = False


PanelMaker: TypeAlias = Callable[[PanelInput], Panel]


def tissue(scene: PanelInput) -> Panel:
    """Show the tissue as it was stained."""
    title = "Tissue" if scene.has_image else "Patches (the map has no image)"
    return _panel(scene, title, scene.tissue, has_scale=True)


def thumbnail(scene: PanelInput) -> Panel:
    """Show the whole slide and the outline of the tissue found in it."""
    slide = scene.content.slide
    assert slide is not None
    side = max(scene.tissue.shape)
    scale = side / max(slide.tissue.shape)
    height, width = (max(1, round(length * scale)) for length in slide.tissue.shape)
    picture = downscale(slide.thumbnail, height=height, width=width)
    share = downscale(slide.tissue.astype(np.float32), height=height, width=width)
    height, width = share.shape
    return Panel(
        title="Slide",
        picture=picture,
        size=(width, height),
        unit_mm=slide.width * slide.mpp / 1000 / width,
        key=(LegendEntry("tissue mask", _MASK, _MASK_PT),),
        outlines=(Outline(region_boundary(share >= 0.5), _MASK, _MASK_PT),),
        has_scale=True,
    )


def probability(scene: PanelInput) -> Panel:
    """Show the probability map."""
    return _probability_panel(
        scene, "Probability of IDC", scene.content.probability, scene.threshold
    )


def smoothed(scene: PanelInput) -> Panel:
    """Show the smoothed probability map."""
    content = scene.content
    assert content.smoothed is not None
    threshold = (content.smoothing or {}).get("threshold", scene.threshold)
    return _probability_panel(scene, "Smoothed probability", content.smoothed, threshold)


def uncertainty(scene: PanelInput) -> Panel:
    """Show the standard deviation of the probability."""
    content, table = scene.content, color_table(COLORMAPS["uncertainty"])
    assert content.uncertainty is not None
    top = robust_max(content.uncertainty)
    picture = _on_white(content.grid(content.uncertainty) / top, table)
    key = ColorBar(table[:, :3], top, "standard deviation", is_open=True)
    return _panel(scene, "Uncertainty", picture, key)


def cam(scene: PanelInput) -> Panel:
    """Show the CAM mosaic."""
    table = color_table(COLORMAPS["cam"])
    values, top = _cam_values(scene)
    key = _cam_bar(table[:, :3], top)
    return _panel(
        scene,
        f"{_method(scene)} of {printable(scene.content.cam_class, longest=_LONGEST_NAME)}",
        _on_white(values, table),
        key,
    )


def labels(scene: PanelInput) -> Panel:
    """Show the labels."""
    content = scene.content
    grid = content.label_grid()
    picture = np.full((*grid.shape, 3), _WHITE, np.uint8)
    has_patch = np.isin(np.arange(grid.size), _flat_cells(content)).reshape(grid.shape)
    entries = []
    for label, name in ((1, _name(content, 1)), (0, _name(content, 0)), (-1, "unknown")):
        cells = has_patch & (grid == label)
        if cells.any():
            picture[cells] = np.rint(np.multiply(to_rgb(LABEL_COLORS[label]), 255))
            entries.append(LegendEntry(f"{name} ({cells.sum():,})", LABEL_COLORS[label]))
    return _panel(scene, "Labels", picture, tuple(entries))


def overlay(scene: PanelInput) -> Panel:
    """Show the probability over the tissue in grey, which leaves the colours what they are."""
    ground, table = to_gray(scene.tissue), color_table(COLORMAPS["probability"], opacity=_OPACITY)
    picture = overlay_colormap(ground, scene.content.probability_grid(), table)
    key = ColorBar(_over_mean(scene, table), 1.0, "probability of IDC", scene.threshold)
    return _panel(scene, "Probability over tissue", picture, key)


def cam_overlay(scene: PanelInput) -> Panel:
    """Show the CAM over the tissue in grey, stronger where it is stronger."""
    values, top = _cam_values(scene)
    table = color_table(COLORMAPS["cam"], opacity=_CAM_OPACITY)
    picture = overlay_colormap(to_gray(scene.tissue), values, table)
    key = _cam_bar(_over_mean(scene, table), top)
    return _panel(scene, f"{_method(scene)} over tissue", picture, key)


def contours(scene: PanelInput) -> Panel:
    """Show the tissue with the outlines of what is called and what is labelled IDC."""
    content, idc = scene.content, _name(scene.content, 1)
    called = LegendEntry(
        f"called {idc} (probability \N{GREATER-THAN OR EQUAL TO} {scene.threshold:.2f})",
        _CALLED,
        _CALLED_PT,
    )
    masks = {called: content.probability_grid() >= scene.threshold}
    if knows_labels(content):
        labelled = LegendEntry(f"labelled {idc}", _LABELLED, _LABELLED_PT)
        masks = {labelled: content.label_grid() == 1} | masks
    lines = tuple(
        Outline(region_boundary(mask), entry.colour, entry.width_pt or 0)
        for entry, mask in masks.items()
    )
    return _panel(scene, "Tissue and outlines", scene.tissue, tuple(masks), outlines=lines)


def knows_labels(content: PatientMap) -> bool:
    """Return whether any label of a map is known."""
    return bool((content.label >= 0).any())


def _panel(
    scene: PanelInput,
    title: str,
    picture: Pixels,
    key: Key = (),
    *,
    outlines: tuple[Outline, ...] = (),
    has_scale: bool = False,
) -> Panel:
    rows, cols = scene.content.shape
    unit_mm = scene.content.cell_px * scene.content.mpp / 1000
    return Panel(title, picture, (cols, rows), unit_mm, key, outlines, has_scale)


def _probability_panel(
    scene: PanelInput, title: str, values: NDArray[np.float32], threshold: float
) -> Panel:
    table = color_table(COLORMAPS["probability"])
    key = ColorBar(table[:, :3], 1.0, "probability of IDC", threshold)
    return _panel(scene, title, _on_white(scene.content.grid(values), table), key)


def _on_white(values: NDArray[np.float32], table: Pixels) -> Pixels:
    return overlay_colormap(np.full((*values.shape, 3), _WHITE, np.uint8), values, table)


def _over_mean(scene: PanelInput, table: Pixels) -> Pixels:
    """Return the colours of a table as they look on this patient's tissue, shape (256, 3)."""
    rows, cols = scene.content.shape
    cells = downscale(scene.tissue, height=rows, width=cols)
    mean = cells[tuple(scene.content.row_col.T)].mean(axis=0)
    ground = np.full((1, NUM_COLORS, 3), np.rint(mean), np.uint8)
    return overlay_colormap(
        to_gray(ground), np.linspace(0, 1, NUM_COLORS, dtype=np.float32)[None], table
    )[0]


def _cam_values(scene: PanelInput) -> tuple[NDArray[np.float32], float]:
    """Return the CAM mosaic as shares of what is drawn at full strength, and that."""
    content, side = scene.content, scene.cell_px
    cams = content.cell_cams()
    top = robust_max(cams)
    blocks = np.stack([downscale(block, height=side, width=side) for block in cams])
    return mosaic(blocks / top, content.row_col, shape=content.shape, fill=np.nan), top


def _cam_bar(colours: Pixels, top: float) -> ColorBar:
    return ColorBar(colours, top, "raw, one scale for the patient", is_open=True)


def _method(scene: PanelInput) -> str:
    method = scene.content.cam_method
    return _METHODS.get(method, printable(method, longest=_LONGEST_NAME))


def _name(content: PatientMap, label: int) -> str:
    return printable(content.class_names[label], longest=_LONGEST_NAME)


def _flat_cells(content: PatientMap) -> NDArray[np.int64]:
    return np.ravel_multi_index(tuple(content.row_col.T), content.shape)
