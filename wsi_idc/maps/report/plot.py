"""The living part of a patient's page: bokeh models, and what they do in the browser."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import (
    Button,
    Checkbox,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
    RadioButtonGroup,
    Range1d,
    Rect,
    ScaleBar,
    Slider,
    Span,
    TapTool,
)
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure
from numpy.typing import NDArray

from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.maps.report.layers import (
    Window,
    cam_levels,
    cam_top,
    columns_of,
    histogram,
    laid,
    outcomes,
    outline,
    window_of,
)
from wsi_idc.maps.report.legend import (
    CALLED_COLOUR,
    CLEAR,
    HALO_COLOUR,
    LABEL_COLOURS,
    OUTCOME_COLOURS,
    PALETTES,
    SELECTED_COLOUR,
    TRUTH_COLOUR,
    Legend,
    legends_of,
)

_WIDTH, _HEIGHT = 920, 760
_MARGIN = 1.06
_STEP = 0.005
_NO_PICTURE = "#ffffff"
_TOOLS = "pan,wheel_zoom,box_zoom,reset,save"
_LABEL_ORDER = (-1, 0, 1)


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


def document_of(
    content: PatientMap, pictures: list[Tissue], *, threshold: float, patch_scale: float
) -> Document:
    """Return the models of a page, each part of it a root with a name.

    Args:
        content: The map.
        pictures: The tissue, bottom first; the last one holds the patches if there is one.
        threshold: Where the slider starts.
        patch_scale: Px of the last picture for each px of a patch; 0 where it has none.
    """
    window, sources = window_of(content), _sources_of(content, pictures, threshold)
    slider = Slider(
        start=0, end=1, step=_STEP, value=threshold, title=None, show_value=False, tooltips=False
    )
    slider.update(name="threshold", bar_color=CALLED_COLOUR, sizing_mode="stretch_width")
    by = RadioButtonGroup(labels=["probability", "smoothed probability"], active=0, name="by")
    canvas, renderers = _canvas(content, sources, window)
    chart, line = _chart(content, threshold)
    document = Document()
    roots = [canvas, chart, slider, _reset(slider, by, threshold, content)]
    if content.smoothed is not None:
        roots.append(by)
    for legend in legends_of(content, with_tissue=bool(pictures)):
        roots += _controls(legend, renderers[legend.name])
    for root in roots:
        document.add_root(root)
    _connect(document, content, sources, slider=slider, by=by, line=line, patch_scale=patch_scale)
    return document


def _sources_of(content: PatientMap, pictures: list[Tissue], threshold: float) -> Sources:
    window, called = window_of(content), content.probability >= threshold
    grids: dict[str, list[NDArray]] = {
        "probability": [laid(content.probability, content, fill=np.nan)],
        "labels": [laid((content.label + 2).astype(np.uint8), content, fill=0)],
    }
    if content.cam is not None:
        grids["cam"] = [cam_levels(content)]
    for name, values in (("uncertainty", content.uncertainty), ("smoothed", content.smoothed)):
        if values is not None:
            grids[name] = [laid(values, content, fill=np.nan)]
    codes = laid(outcomes(content.label, called), content, fill=0)
    return Sources(
        patches=ColumnDataSource(columns_of(content), name="patches"),
        grids=ColumnDataSource(grids, name="grids"),
        errors=ColumnDataSource({"errors": [codes]}, name="errors"),
        regions=_lines(laid(called, content, fill=False), window, name="regions"),
        truth=_lines(laid(content.label == 1, content, fill=False), window, name="truth"),
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


def _lines(mask: NDArray[np.bool_], window: Window, *, name: str) -> ColumnDataSource:
    x, y = outline(mask, window)
    ends = {"x0": x[:, 0], "y0": y[:, 0], "x1": x[:, 1], "y1": y[:, 1]}
    return ColumnDataSource(ends, name=name)


def _canvas(
    content: PatientMap, sources: Sources, window: Window
) -> tuple[figure, dict[str, list[GlyphRenderer]]]:
    """Return the figure, and what it draws for each layer."""
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
        background_fill_color=_NO_PICTURE,
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
    _make_cells_answer(canvas, content, sources.patches, window)
    canvas.add_layout(_scale_bar(canvas))
    return canvas, drawn


def _ranges(window: Window) -> tuple[Range1d, Range1d]:
    """Return ranges that hold the window, of the figure's shape, so that cells are square."""
    mm_per_px = _MARGIN * max(window.width_mm / _WIDTH, window.height_mm / _HEIGHT)
    x, y = window.x_mm + window.width_mm / 2, window.y_mm + window.height_mm / 2
    across, down = mm_per_px * _WIDTH / 2, mm_per_px * _HEIGHT / 2
    return Range1d(x - across, x + across), Range1d(y + down, y - down)


def _draw_grids(
    canvas: figure, content: PatientMap, sources: Sources, window: Window
) -> dict[str, list[GlyphRenderer]]:
    tissue = canvas.image_url("url", "x", "y", "w", "h", anchor="top_left", source=sources.tissue)
    drawn = {"tissue": [tissue]}
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
                origin="top_left",
                anchor="top_left",
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
    halo = canvas.segment(**ends, line_color=HALO_COLOUR, line_width=4, line_cap="square")
    line = canvas.segment(**ends, line_color=colour, line_width=2, line_dash=dash)
    return [halo, line]


def _make_cells_answer(
    canvas: figure, content: PatientMap, patches: ColumnDataSource, window: Window
) -> None:
    """Let the patches be hovered over and clicked on: cells that are drawn when selected."""
    side = window.cell_mm
    cells = canvas.rect("x_mm", "y_mm", side, side, fill_alpha=0, line_alpha=0, source=patches)
    cells.nonselection_glyph = None
    cells.selection_glyph = Rect(
        width=side, height=side, fill_alpha=0, line_color=SELECTED_COLOUR, line_width=3
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


def _chart(content: PatientMap, threshold: float) -> tuple[figure, Span]:
    """Return the spread of the probability by label, and the line at the threshold."""
    chart = figure(
        name="histogram",
        height=96,
        sizing_mode="stretch_width",
        x_range=(0, 1),
        tools="",
        toolbar_location=None,
        y_axis_location=None,
        min_border=0,
        min_border_left=8,
        min_border_right=8,
        outline_line_color=None,
    )
    bars = ColumnDataSource(histogram(content))
    for place, label in enumerate(_LABEL_ORDER, 1):
        if f"top_{label}" in bars.data:
            chart.quad(
                left="left",
                right="right",
                bottom=f"bottom_{label}",
                top=f"top_{label}",
                fill_color=LABEL_COLOURS[place],
                line_color="white",
                line_width=0.5,
                source=bars,
            )
    chart.y_range.start = 0
    chart.grid.visible = False
    chart.xaxis.ticker = [0, 0.25, 0.5, 0.75, 1]
    chart.xaxis.formatter = NumeralTickFormatter(format="0.00")
    line = Span(location=threshold, dimension="height", line_color="#111111", line_width=2)
    chart.add_layout(line)
    return chart, line


def _reset(
    slider: Slider, by: RadioButtonGroup, threshold: float, content: PatientMap
) -> Button:
    """Return the button that sets the threshold back; choosing what to call by does it too."""
    smoothed = float((content.smoothing or {}).get("threshold", threshold))
    button = Button(label="Reset", name="reset", width=64, height=26)
    code = CustomJS(
        args={"slider": slider, "by": by, "starts": [threshold, smoothed]},
        code="slider.value = starts[by.active ?? 0]",
    )
    button.js_on_click(code)
    by.js_on_change("active", code)
    return button


def _controls(legend: Legend, renderers: list[GlyphRenderer]) -> list[Any]:
    """Return the switch of a layer and, but for lines, the slider of its opacity."""
    switch = Checkbox(label=legend.title, active=legend.shown, name=f"{legend.name}_on")
    for renderer in renderers:
        renderer.visible = legend.shown
        switch.js_link("active", renderer, "visible")
    if legend.opacity is None:
        return [switch]
    opacity = Slider(start=0, end=1, step=0.05, value=legend.opacity, title=None)
    opacity.update(name=f"{legend.name}_opacity", show_value=False, tooltips=False)
    opacity.update(sizing_mode="stretch_width", bar_color="#9fb3c8")
    for renderer in renderers:
        renderer.glyph.global_alpha = legend.opacity
        code = "renderer.glyph.global_alpha = {value: slider.value}"
        opacity.js_on_change(
            "value", CustomJS(args={"renderer": renderer, "slider": opacity}, code=code)
        )
    return [switch, opacity]


def _connect(
    document: Document,
    content: PatientMap,
    sources: Sources,
    *,
    slider: Slider,
    by: RadioButtonGroup,
    line: Span,
    patch_scale: float,
) -> None:
    """Let the threshold redraw, and a click show its patch; both once at the start."""
    window = window_of(content)
    redraw = _script(
        "redraw.js",
        patches=sources.patches,
        errors=sources.errors,
        regions=sources.regions,
        threshold=slider,
        by=by,
        line=line,
        grid={name: getattr(window, name) for name in Window.__dataclass_fields__},
    )
    slider.js_on_change("value", redraw)
    by.js_on_change("active", redraw)
    cam: Mapping[str, Any] = {}
    if content.cam is not None:
        rows, cols = cam_levels(content).shape
        cam = {
            "height": rows // window.rows,
            "width": cols // window.cols,
            "columns": cols,
            "palette": PALETTES["cam"],
        }
    show = _script(
        "show.js",
        patches=sources.patches,
        grids=sources.grids,
        tissue=sources.tissue,
        cam=dict(cam),
        columns=window.cols,
        side_px=content.patch_px * patch_scale,
    )
    sources.patches.selected.js_on_change("indices", show)
    document.js_on_event(DocumentReady, redraw, show)
    sources.patches.selected.indices = [int(np.argmax(np.nan_to_num(content.probability)))]


def _script(name: str, **arguments: Any) -> CustomJS:
    code = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return CustomJS(args=arguments, code=code)


__all__ = ["Tissue", "cam_top", "document_of"]
