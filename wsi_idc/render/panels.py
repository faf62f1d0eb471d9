"""Panels of a picture. A panel shows one layer of a map, with outlines and a legend."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from wsi_idc.geometry.grid import mosaic
from wsi_idc.geometry.regions import region_boundary
from wsi_idc.maps.layers import Layer, has_labels, layers_of
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting import raster
from wsi_idc.plotting.colors import COLORMAPS, INK, LABEL_COLORS, UNFLAGGED_COLOR
from wsi_idc.plotting.raster import NUM_COLORS, Pixels
from wsi_idc.plotting.style import printable

# Opacity over tissue. A CAM value of 0 is transparent. The square root makes small values visible.
_OPACITY: dict[str, NDArray[np.float64] | float] = {
    "probability": 0.5,
    "cam": 0.85 * np.sqrt(np.linspace(0, 1, NUM_COLORS)),
}
_WHITE = 255
# If both outlines share an edge, the narrow outline is drawn over the wide outline.
_LABELED, _LABELED_PT = "#ffd400", 3.0
_CALLED, _CALLED_PT = "#0b1f66", 1.0
_SHADE = 0.25  # opacity of the shade over regions called IDC
_MASK, _MASK_PT = "#0b1f66", 0.5
_LONGEST_NAME, _LONGEST_TITLE = 16, 28
# Top of the scale bar and the color bar below a panel, and size of their texts.
BAR_TOP_MM, SMALL_PT = 3.6, 6.0


@dataclass(frozen=True)
class PanelInput:
    """Input of all panels of a picture.

    Attributes:
        patient_map: Map whose grid begins with the first row and column that have a patch.
        tissue: Stitched tissue, shape (rows * cell_px, cols * cell_px, 3). If the map has no
            image, the cells with a patch are gray and the other cells are white.
        has_image: Whether the map has an image.
        cell_px: Side of a cell in ``tissue``, in px.
        threshold: Lowest probability at which a patch is called IDC.
    """

    patient_map: PatientMap
    tissue: Pixels
    has_image: bool
    cell_px: int
    threshold: float

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers of the map by name."""
        return {layer.name: layer for layer in layers_of(self.patient_map)}

    def make_panel(self, title: str, picture: Pixels, **options: Any) -> "Panel":
        """Return a panel of the complete grid.

        Args:
            title: Text above the picture.
            picture: RGB pixels of the panel.
            **options: Other arguments of ``Panel``, such as ``legend``.
        """
        rows, cols = self.patient_map.shape
        unit_mm = self.patient_map.cell_px * self.patient_map.mpp / 1000
        return Panel(title, picture, (cols, rows), unit_mm, **options)


@dataclass(frozen=True)
class ColorBar:
    """A color bar from 0 to ``vmax``. The shape of the attribute ``colors`` is (256, 3)."""

    colors: Pixels
    vmax: float
    caption: str
    threshold: float | None = None
    is_open: bool = False  # whether values can be larger than vmax


@dataclass(frozen=True)
class LegendEntry:
    """An entry of a legend. The entry explains the color of areas or lines in the picture.

    Attributes:
        name: Meaning of the color.
        color: The color.
        ends: End points of the lines in the panel's unit, shape (N, 2, 2); None for areas.
        width_pt: Width of the lines in points.
    """

    name: str
    color: str
    ends: NDArray[np.int64] | None = None
    width_pt: float = 0


@dataclass(frozen=True)
class Panel:
    """A picture with a legend below.

    Attributes:
        title: Text above the picture.
        picture: RGB pixels of the panel, in any resolution.
        size: Width and height in the panel's unit: cells of the grid, or px of a thumbnail.
        unit_mm: Length of the unit in mm of tissue.
        legend: Entries of the legend. Lines over the picture are drawn in this order.
        color_bar: Color bar of the picture; None if the colors are not a scale.
        has_scale: Whether a scale bar is drawn.
    """

    title: str
    picture: Pixels
    size: tuple[int, int]
    unit_mm: float
    legend: tuple[LegendEntry, ...] = ()
    color_bar: ColorBar | None = None
    has_scale: bool = False


def nice_length(span: float) -> float:
    """Return the largest length up to ``span / 3`` that is 1, 2 or 5 times a power of 10."""
    power = 10.0 ** np.floor(np.log10(span / 3))
    return float(max(step * power for step in (1, 2, 5) if step * power <= span / 3))


def draw_scale_bar(foot: Axes, page_mm: float, width: float) -> None:
    """Draw a scale bar below a panel. The length of the bar is a round number.

    Args:
        foot: Axes below the panel; their unit is mm on the page.
        page_mm: Length of 1 mm of tissue on the page, in mm.
        width: Width of the panel on the page, in mm.
    """
    length = nice_length(width / page_mm)
    foot.add_patch(Rectangle((0, BAR_TOP_MM), length * page_mm, 0.8, color=INK, linewidth=0))
    text = f"{length:g} mm" if length >= 0.1 else f"{1000 * length:g} \N{MICRO SIGN}m"
    foot.text(0, BAR_TOP_MM + 1.6, text, va="top", fontsize=SMALL_PT, color=INK)


def tissue_panel(panel_input: PanelInput) -> Panel:
    """Return the panel of the tissue."""
    title = "Tissue" if panel_input.has_image else "Patches (the map has no image)"
    return panel_input.make_panel(title, panel_input.tissue, has_scale=True)


def slide_panel(panel_input: PanelInput) -> Panel:
    """Return the panel of the complete slide, with the outline of the detected tissue."""
    slide = panel_input.patient_map.slide
    assert slide is not None
    scale = max(panel_input.tissue.shape) / max(slide.tissue.shape)
    height, width = (max(1, round(length * scale)) for length in slide.tissue.shape)
    picture = raster.downscale(slide.thumbnail, height=height, width=width)
    tissue_fraction = raster.downscale(slide.tissue.astype(np.float32), height=height, width=width)
    height, width = tissue_fraction.shape
    unit_mm = slide.width * slide.mpp / 1000 / width
    outline = region_boundary(tissue_fraction >= 0.5)
    legend = (LegendEntry("tissue mask", _MASK, outline, _MASK_PT),)
    return Panel("Slide", picture, (width, height), unit_mm, legend, has_scale=True)


def layer_panel(panel_input: PanelInput, name: str) -> Panel:
    """Return the panel of a layer in colors; cells without a patch are white."""
    layer = panel_input.layers[name]
    values, table = _scaled_grid(panel_input, layer), raster.color_table(layer.colormap)
    white = np.full((*values.shape, 3), _WHITE, np.uint8)
    return panel_input.make_panel(
        printable(layer.title, longest=_LONGEST_TITLE),
        raster.overlay_colormap(white, values, table),
        color_bar=_color_bar(panel_input, layer, table[:, :3]),
    )


def overlay_panel(panel_input: PanelInput, name: str) -> Panel:
    """Return the panel of a layer over gray tissue. Gray does not change the hues of the layer."""
    layer = panel_input.layers[name]
    values = _scaled_grid(panel_input, layer)
    table = raster.color_table(layer.colormap, opacity=_OPACITY[name])
    quantity, _, _ = layer.title.partition(" of ")
    return panel_input.make_panel(
        f"{printable(quantity, longest=_LONGEST_NAME)} over tissue",
        raster.overlay_colormap(raster.to_gray(panel_input.tissue), values, table),
        color_bar=_color_bar(panel_input, layer, _colors_on_tissue(panel_input, table)),
    )


def labels_panel(panel_input: PanelInput) -> Panel:
    """Return the panel of the labels. The legend has the number of patches of each label."""
    patient_map = panel_input.patient_map
    grid, has_patch = patient_map.label_grid(), np.zeros(patient_map.shape, bool)
    has_patch[tuple(patient_map.row_col.T)] = True
    picture = np.full((*grid.shape, 3), _WHITE, np.uint8)
    entries = []
    names = {1: _class_name(patient_map, 1), 0: _class_name(patient_map, 0), -1: "unknown"}
    for label, name in names.items():
        cells = has_patch & (grid == label)
        if cells.any():
            picture[cells] = np.rint(np.multiply(to_rgb(LABEL_COLORS[label]), 255))
            entries.append(LegendEntry(f"{name} ({cells.sum():,})", LABEL_COLORS[label]))
    return panel_input.make_panel("Labels", picture, legend=tuple(entries))


def flags_panel(panel_input: PanelInput) -> Panel:
    """Return the panel of the quality flags. The legend has the number of patches of each flag."""
    patient_map, layer = panel_input.patient_map, panel_input.layers["flags"]
    assert patient_map.flags is not None and layer.values is not None
    numbers = patient_map.grid(layer.values.astype(np.float32))  # NaN where there is no patch
    picture = np.full((*numbers.shape, 3), _WHITE, np.uint8)
    num_unflagged = int((patient_map.flags == 0).sum())
    colors = {0: (UNFLAGGED_COLOR, f"no flag ({num_unflagged:,})")}
    colors |= {n: (layer.colors[n], text) for n, text in layer.legend_texts().items()}
    for number, (color, _) in colors.items():
        picture[numbers == number] = np.rint(np.multiply(to_rgb(color), 255))
    entries = [LegendEntry(text, c) for n, (c, text) in colors.items() if n == 0 or layer.counts[n]]
    return panel_input.make_panel("Flags", picture, legend=tuple(entries))


def outlines_panel(panel_input: PanelInput) -> Panel:
    """Return the tissue panel with outlines of regions called IDC and of regions labelled IDC.

    Regions called IDC are shaded, so that a hole in a region differs from a small region.
    """
    patient_map, idc = panel_input.patient_map, _class_name(panel_input.patient_map, 1)
    name = f"called {idc}, shaded (\N{GREATER-THAN OR EQUAL TO} {panel_input.threshold:.2f})"
    called = patient_map.called_grid(panel_input.threshold)
    shade = np.full((NUM_COLORS, 4), np.rint(np.multiply(to_rgba(_CALLED, _SHADE), 255)), np.uint8)
    values = np.where(called, np.float32(1), np.float32(np.nan))
    picture = raster.overlay_colormap(panel_input.tissue, values, shade)
    legend = [LegendEntry(name, _CALLED, region_boundary(called), _CALLED_PT)]
    if has_labels(patient_map):
        labeled = region_boundary(patient_map.label_grid() == 1)
        legend.insert(0, LegendEntry(f"labelled {idc}", _LABELED, labeled, _LABELED_PT))
    return panel_input.make_panel("Tissue and outlines", picture, legend=tuple(legend))


PANELS: dict[str, Callable[[PanelInput], Panel]] = {
    "slide": slide_panel,
    "tissue": tissue_panel,
    "labels": labels_panel,
    "flags": flags_panel,
    "outlines": outlines_panel,
    **{name: partial(layer_panel, name=name) for name in COLORMAPS},
    **{f"{name} over tissue": partial(overlay_panel, name=name) for name in _OPACITY},
}


def _scaled_grid(panel_input: PanelInput, layer: Layer) -> NDArray[np.float32]:
    """Return a layer as a grid, with values divided by ``layer.vmax``. Empty cells are NaN."""
    patient_map, side, values = panel_input.patient_map, panel_input.cell_px, layer.values
    assert values is not None
    if values.ndim == 1:
        return patient_map.grid(values) / layer.vmax
    blocks = np.stack([raster.downscale(block, height=side, width=side) for block in values])
    return mosaic(blocks / layer.vmax, patient_map.row_col, shape=patient_map.shape, fill=np.nan)


def _color_bar(panel_input: PanelInput, layer: Layer, colors: Pixels) -> ColorBar:
    thresholds: dict[str, float | None] = {"probability": panel_input.threshold}
    if (second := panel_input.patient_map.second_probability) is not None:
        thresholds[second.name] = second.threshold
    caption = layer.note or "probability of IDC"
    return ColorBar(colors, layer.vmax, caption, thresholds.get(layer.name), layer.is_open)


def _colors_on_tissue(panel_input: PanelInput, table: Pixels) -> Pixels:
    """Blend the colors of a color table with the mean gray of tissue. The shape is (256, 3)."""
    rows, cols = panel_input.patient_map.shape
    cells = raster.downscale(panel_input.tissue, height=rows, width=cols)
    mean = cells[tuple(panel_input.patient_map.row_col.T)].mean(axis=0)
    ground = np.full((1, NUM_COLORS, 3), np.rint(mean), np.uint8)
    values = np.linspace(0, 1, NUM_COLORS, dtype=np.float32)[None]
    return raster.overlay_colormap(raster.to_gray(ground), values, table)[0]


def _class_name(patient_map: PatientMap, label: int) -> str:
    return printable(patient_map.class_names[label], longest=_LONGEST_NAME)
