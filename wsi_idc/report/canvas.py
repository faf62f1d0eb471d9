"""The canvas of a patient's page: tissue, layers over it, and cells that answer the mouse."""

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

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.report.layers import (
    BoundingBox,
    bounding_box,
    cam_levels,
    outcomes,
    patch_columns,
    region_boundary,
    to_bbox_grid,
)
from wsi_idc.report.legend import (
    CALLED_COLOUR,
    CLEAR,
    HALO_COLOUR,
    LABEL_COLOURS,
    OUTCOME_COLOURS,
    PALETTES,
    SELECTED_COLOUR,
    TRUTH_COLOUR,
    legends_of,
)

_WIDTH, _HEIGHT = 880, 760
_MARGIN = 1.06
_TOOLS = "pan,wheel_zoom,box_zoom,reset,save"


@dataclass(frozen=True)
class Tissue:
    """A picture that lies under the layers.

    Attributes:
        uri: Its data URI.
        x_mm, y_mm: Its upper left corner.
        width_mm, height_mm: Its size.
    """

    uri: str
    x_mm: float
    y_mm: float
    width_mm: float
    height_mm: float


@dataclass(frozen=True)
class Sources:
    """What is drawn, and what changes with the threshold."""

    patches: ColumnDataSource
    grids: ColumnDataSource
    errors: ColumnDataSource
    regions: ColumnDataSource
    truth: ColumnDataSource
    tissue: ColumnDataSource


def sources_of(content: PatientMap, pictures: Sequence[Tissue], *, threshold: float) -> Sources:
    """Return what a page draws of a map; what is called IDC follows from the threshold."""
    window, called = bounding_box(content), content.probability >= threshold
    grids: dict[str, list[NDArray]] = {
        "probability": [to_bbox_grid(content.probability, content, fill=np.nan)],
        "labels": [to_bbox_grid((content.label + 2).astype(np.uint8), content, fill=0)],
    }
    if content.cam is not None:
        grids["cam"] = [cam_levels(content)]
    for name, values in (("uncertainty", content.uncertainty), ("smoothed", content.smoothed)):
        if values is not None:
            grids[name] = [to_bbox_grid(values, content, fill=np.nan)]
    codes = to_bbox_grid(outcomes(content.label, called), content, fill=0)
    return Sources(
        patches=ColumnDataSource(patch_columns(content), name="patches"),
        grids=ColumnDataSource(grids, name="grids"),
        errors=ColumnDataSource({"errors": [codes]}, name="errors"),
        regions=_lines(to_bbox_grid(called, content, fill=False), window, name="regions"),
        truth=_lines(to_bbox_grid(content.label == 1, content, fill=False), window, name="truth"),
        tissue=ColumnDataSource(
            {
                "url": [picture.uri for picture in pictures],
                "x": [picture.x_mm for picture in pictures],
                "y": [picture.y_mm for picture in pictures],
                "w": [picture.width_mm for picture in pictures],
                "h": [picture.height_mm for picture in pictures],
            },
            name="tissue",
        ),
    )


def _lines(mask: NDArray[np.bool_], window: BoundingBox, *, name: str) -> ColumnDataSource:
    x, y = region_boundary(mask, window)
    ends = {"x0": x[:, 0], "y0": y[:, 0], "x1": x[:, 1], "y1": y[:, 1]}
    return ColumnDataSource(ends, name=name)


def canvas_of(
    content: PatientMap, sources: Sources
) -> tuple[figure, dict[str, list[GlyphRenderer]]]:
    """Return the figure, and what it draws for each layer."""
    window = bounding_box(content)
    x_range, y_range = _ranges(window)
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
    drawn = _draw_grids(canvas, content, sources, window)
    drawn["truth"] = _draw_lines(canvas, sources.truth, TRUTH_COLOUR, dash="5 4")
    drawn["regions"] = _draw_lines(canvas, sources.regions, CALLED_COLOUR, dash="solid")
    _add_cell_tools(canvas, content, sources.patches, window)
    canvas.add_layout(_scale_bar(canvas))
    return canvas, drawn


def _ranges(window: BoundingBox) -> tuple[Range1d, Range1d]:
    """Return ranges that hold the window, of the figure's shape, so that cells are square."""
    mm_per_px = _MARGIN * max(window.width_mm / _WIDTH, window.height_mm / _HEIGHT)
    x, y = window.x_mm + window.width_mm / 2, window.y_mm + window.height_mm / 2
    across, down = mm_per_px * _WIDTH / 2, mm_per_px * _HEIGHT / 2
    return Range1d(x - across, x + across), Range1d(y + down, y - down)


def _draw_grids(
    canvas: figure, content: PatientMap, sources: Sources, window: BoundingBox
) -> dict[str, list[GlyphRenderer]]:
    tissue = canvas.image_url("url", "x", "y", "w", "h", anchor="top_left", source=sources.tissue)
    drawn = {"tissue": [tissue]}
    # y goes down, so that an image's bottom left, where it begins, is at the top.
    # From a palette, whole numbers take the colour at their place, 0 being no colour.
    labels, errors = ([CLEAR, *colours.values()] for colours in (LABEL_COLOURS, OUTCOME_COLOURS))
    mappers = {
        "probability": _mapper(PALETTES["probability"], high=1),
        "smoothed": _mapper(PALETTES["smoothed"], high=1),
        "uncertainty": _mapper(PALETTES["uncertainty"], high=1),
        "cam": _mapper([CLEAR, *PALETTES["cam"][1:]], high=256),
        "labels": _mapper(labels, high=len(labels)),
        "errors": _mapper(errors, high=len(errors)),
    }
    for legend in legends_of(content, with_tissue=True):
        name = legend.name
        if name not in mappers:
            continue
        if legend.high:
            mappers[name].high = legend.high if name != "cam" else 256
        drawn[name] = [
            canvas.image(
                name,
                window.x_mm,
                window.y_mm,
                window.width_mm,
                window.height_mm,
                color_mapper=mappers[name],
                source=sources.errors if name == "errors" else sources.grids,
            )
        ]
    return drawn


def _mapper(palette: list[str], *, high: float) -> LinearColorMapper:
    return LinearColorMapper(palette=palette, low=0, high=high, nan_color=CLEAR)


def _draw_lines(
    canvas: figure, source: ColumnDataSource, colour: str, *, dash: str
) -> list[GlyphRenderer]:
    """Draw lines over a dark halo, so that they show on any ground."""
    ends = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1", "source": source}
    halo = canvas.segment(**ends, line_color=HALO_COLOUR, line_width=3.5, line_cap="square")
    line = canvas.segment(**ends, line_color=colour, line_width=1.5, line_dash=dash)
    return [halo, line]


def _add_cell_tools(
    canvas: figure, content: PatientMap, patches: ColumnDataSource, window: BoundingBox
) -> None:
    """Let the patches be hovered over and clicked on: cells that are drawn when selected."""
    side = window.cell_mm
    cells = canvas.rect("x_mm", "y_mm", side, side, fill_alpha=0, line_alpha=0, source=patches)
    cells.nonselection_glyph = None
    cells.selection_glyph = Rect(
        x="x_mm",
        y="y_mm",
        width=side,
        height=side,
        fill_alpha=0,
        line_color=SELECTED_COLOUR,
        line_width=3,
    )
    tips = [("probability", "@probability{0.000}")]
    if content.smoothed is not None:
        tips.append(("smoothed", "@smoothed{0.000}"))
    if content.uncertainty is not None:
        tips.append(("uncertainty", "@uncertainty{0.000}"))
    tips.append(("label", "@label_name"))
    if content.cam is not None:
        tips.append(("CAM, largest", "@cam_max{0.0000}"))
    tips += [("row, col", "@row, @col"), ("x, y", "@x, @y px")]
    canvas.add_tools(
        HoverTool(renderers=[cells], tooltips=tips, point_policy="follow_mouse"),
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
