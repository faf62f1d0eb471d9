"""Canvas of a patient's page: tissue, layers over it, and cells that react to the mouse."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    HoverTool,
    LinearColorMapper,
    Range1d,
    Rect,
    ScaleBar,
    TapTool,
)
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure
from numpy.typing import NDArray

from wsi_idc.geometry.regions import region_boundary
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import LABEL_COLORS
from wsi_idc.report.layers import (
    CALLED_COLOR,
    OUTCOME_COLORS,
    TRUTH_COLOR,
    BoundingBox,
    PageLayer,
    bounding_box,
    cam_levels,
    outcomes,
    patch_columns,
    to_bbox_grid,
)

_CLEAR = "#00000000"
_HALO_COLOR = "#102a43"
_SELECTED_COLOR = "#ff2bd6"  # neither in viridis nor in inferno
# By code, 0 without a patch: labels 1 unknown, 2 non-IDC, 3 IDC.
_CODE_PALETTES = {
    "labels": [_CLEAR, *(LABEL_COLORS[label] for label in (-1, 0, 1))],
    "errors": [_CLEAR, *OUTCOME_COLORS.values()],
}
_LINES = ("regions", "truth")
_WIDTH, _HEIGHT = 880, 760
_MARGIN = 1.06
_TOOLS = "pan,wheel_zoom,box_zoom,reset,save"


@dataclass(frozen=True)
class TissuePicture:
    """A picture below the layers.

    Attributes:
        uri: Data URI.
        x_mm, y_mm: Upper left corner.
        width_mm, height_mm: Size.
    """

    uri: str
    x_mm: float
    y_mm: float
    width_mm: float
    height_mm: float


@dataclass(frozen=True)
class Sources:
    """Data of the canvas; the scripts of the page change errors and regions."""

    patches: ColumnDataSource
    grids: ColumnDataSource
    errors: ColumnDataSource
    regions: ColumnDataSource
    truth: ColumnDataSource
    tissue: ColumnDataSource


def build_sources(
    patient_map: PatientMap, pictures: Sequence[TissuePicture], *, threshold: float
) -> Sources:
    """Build the data of the canvas, with the patches called IDC by the threshold."""
    called = patient_map.probability >= threshold
    codes = to_bbox_grid((patient_map.label + 2).astype(np.uint8), patient_map, fill=0)
    grids: dict[str, list[NDArray]] = {"labels": [codes]}
    if patient_map.cam is not None:
        grids["cam"] = [cam_levels(patient_map)]
    for name in ("probability", "uncertainty", "smoothed"):
        if (values := getattr(patient_map, name)) is not None:
            grids[name] = [to_bbox_grid(values, patient_map, fill=np.nan)]
    errors = to_bbox_grid(outcomes(patient_map.label, called), patient_map, fill=0)
    tissue = {
        "url": [picture.uri for picture in pictures],
        "x": [picture.x_mm for picture in pictures],
        "y": [picture.y_mm for picture in pictures],
        "w": [picture.width_mm for picture in pictures],
        "h": [picture.height_mm for picture in pictures],
    }
    return Sources(
        patches=ColumnDataSource(patch_columns(patient_map), name="patches"),
        grids=ColumnDataSource(grids, name="grids"),
        errors=ColumnDataSource({"errors": [errors]}, name="errors"),
        regions=_line_source(called, patient_map, name="regions"),
        truth=_line_source(patient_map.label == 1, patient_map, name="truth"),
        tissue=ColumnDataSource(tissue, name="tissue"),
    )


def _line_source(
    members: NDArray[np.bool_], patient_map: PatientMap, *, name: str
) -> ColumnDataSource:
    """Return the outline of the patches that are set, in mm."""
    box = bounding_box(patient_map)
    lines = region_boundary(to_bbox_grid(members, patient_map, fill=False))
    first = np.array([box.first_col, box.first_row])
    ends = (lines + first) * box.cell_mm  # (N, 2 ends, x and y)
    columns = zip(("x0", "y0", "x1", "y1"), ends.reshape(-1, 4).T, strict=True)
    return ColumnDataSource(dict(columns), name=name)


def build_canvas(
    patient_map: PatientMap, layers: Sequence[PageLayer], sources: Sources
) -> tuple[figure, dict[str, list[GlyphRenderer]]]:
    """Build the figure; return it with the renderers of each layer."""
    box = bounding_box(patient_map)
    x_range, y_range = _ranges(box)
    canvas = figure(
        name="canvas",
        width=_WIDTH,
        height=_HEIGHT,
        sizing_mode="scale_width",
        x_range=x_range,
        y_range=y_range,
        tools=_TOOLS,
        active_scroll="wheel_zoom",
        toolbar_location="right",
        min_border=0,
        background_fill_color="white",
        outline_line_color=None,
        x_axis_location=None,
        y_axis_location=None,
    )
    canvas.toolbar_inner = True  # a toolbar beside the frame would change its shape
    canvas.toolbar.logo = None
    canvas.grid.visible = False
    tissue = canvas.image_url("url", "x", "y", "w", "h", anchor="top_left", source=sources.tissue)
    renderers = {"tissue": [tissue]}
    # y points down, so the first row of an image is at the top.
    for layer in layers:
        if layer.name in ("tissue", *_LINES):
            continue
        image = canvas.image(
            layer.name,
            box.x_mm,
            box.y_mm,
            box.width_mm,
            box.height_mm,
            color_mapper=_color_mapper(layer),
            source=sources.errors if layer.name == "errors" else sources.grids,
        )
        renderers[layer.name] = [image]
    renderers["truth"] = _draw_lines(canvas, sources.truth, TRUTH_COLOR, dash="5 4")
    renderers["regions"] = _draw_lines(canvas, sources.regions, CALLED_COLOR, dash="solid")
    _add_cell_tools(canvas, sources.patches, box)
    canvas.add_layout(_scale_bar(canvas))
    return canvas, renderers


def _ranges(box: BoundingBox) -> tuple[Range1d, Range1d]:
    """Return ranges that hold the box and have the figure's shape, so that cells are square."""
    mm_per_px = _MARGIN * max(box.width_mm / _WIDTH, box.height_mm / _HEIGHT)
    x, y = box.x_mm + box.width_mm / 2, box.y_mm + box.height_mm / 2
    across, down = mm_per_px * _WIDTH / 2, mm_per_px * _HEIGHT / 2
    return Range1d(x - across, x + across), Range1d(y + down, y - down)


def _color_mapper(layer: PageLayer) -> LinearColorMapper:
    palette, high = list(layer.palette), layer.vmax
    if layer.name == "cam":  # levels, 0 without a patch
        palette, high = [_CLEAR, *palette[1:]], 256
    elif layer.name in _CODE_PALETTES:
        palette = _CODE_PALETTES[layer.name]
        high = len(palette)
    return LinearColorMapper(palette=palette, low=0, high=high, nan_color=_CLEAR)


def _draw_lines(
    canvas: figure, source: ColumnDataSource, color: str, *, dash: str
) -> list[GlyphRenderer]:
    """Draw lines over a dark halo, which makes them visible on any ground."""
    ends = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1", "source": source}
    halo = canvas.segment(**ends, line_color=_HALO_COLOR, line_width=3.5, line_cap="square")
    line = canvas.segment(**ends, line_color=color, line_width=1.5, line_dash=dash)
    return [halo, line]


def _add_cell_tools(canvas: figure, patches: ColumnDataSource, box: BoundingBox) -> None:
    """Add hover and tap tools: invisible cells that are outlined when selected."""
    side = box.cell_mm
    cells = canvas.rect("x_mm", "y_mm", side, side, fill_alpha=0, line_alpha=0, source=patches)
    cells.nonselection_glyph = None
    cells.selection_glyph = Rect(
        x="x_mm",
        y="y_mm",
        width=side,
        height=side,
        fill_alpha=0,
        line_color=_SELECTED_COLOR,
        line_width=3,
    )
    tips = {
        "probability": "@probability{0.000}",
        "smoothed": "@smoothed{0.000}",
        "uncertainty": "@uncertainty{0.000}",
        "label": "@label_name",
        "CAM, largest": "@cam_max{0.0000}",
        "row, col": "@row, @col",
        "x, y": "@x, @y px",
    }
    optional = {"smoothed": "smoothed", "uncertainty": "uncertainty", "CAM, largest": "cam_max"}
    tooltips = [tip for tip in tips.items() if optional.get(tip[0], "row") in patches.data]
    canvas.add_tools(
        HoverTool(renderers=[cells], tooltips=tooltips, point_policy="follow_mouse"),
        TapTool(renderers=[cells]),
    )


def _scale_bar(canvas: figure) -> ScaleBar:
    return ScaleBar(
        range=canvas.x_range,
        unit="mm",
        location="bottom_left",
        bar_length=0.15,
        bar_line_width=3,
        background_fill_color="white",
        background_fill_alpha=0.85,
        border_line_color=None,
        label_text_font_size="13px",
    )
