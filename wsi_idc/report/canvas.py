"""Parts of a patient's page: canvas with layers and cells, histogram, controls."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh import models
from bokeh.core.properties import value
from bokeh.model import Model
from bokeh.models import ColumnDataSource, CustomJS, GlyphRenderer, RadioButtonGroup, Slider
from bokeh.plotting import figure
from numpy.typing import NDArray

from wsi_idc.geometry.grid import scatter_to_grid
from wsi_idc.geometry.regions import region_boundary
from wsi_idc.maps.layers import OPTIONAL_VALUES, crop_to_patches, flag_numbers
from wsi_idc.maps.patient_map import PatientMap
from wsi_idc.plotting.colors import FLAG_COLORS, LABEL_COLORS
from wsi_idc.report.layers import (
    CALLED_COLOR,
    MASK_COLOR,
    OUTCOME_COLORS,
    TRUTH_COLOR,
    PageLayer,
    cam_levels,
    histogram,
    outcomes,
    patch_columns,
    slide_corner_mm,
)

_CLEAR = "#00000000"
_HALO_COLOR = "#102a43"
_SELECTED_COLOR = "#ff2bd6"  # not a color of viridis or inferno
# Colors by code. Code 0 is a cell without a patch. Codes of labels: 1 unknown, 2 non-IDC, 3 IDC.
_CODE_PALETTES = {
    "labels": [_CLEAR, *(LABEL_COLORS[label] for label in (-1, 0, 1))],
    "errors": [_CLEAR, *OUTCOME_COLORS.values()],
    "flags": [_CLEAR, *FLAG_COLORS],
}
_LINES = ("regions", "truth", "mask")
_WIDTH, _HEIGHT = 880, 760
_MARGIN = 1.06
_TOOLBAR = 48  # px for the toolbar of 30 px; a browser may shrink this space to 32 px
_TOOLS = "pan,wheel_zoom,box_zoom,reset,save"
_SMALL = (
    ":host { font-size: 13px; } .bk-btn { padding: 1px 8px; font-size: 12px; } "
    "label, .bk-input-group { display: flex; align-items: center; gap: 6px; } input { margin: 0; }"
)


class TissuePicture(NamedTuple):
    """Picture below the layers: data URI, x and y of the upper left corner in mm, size in mm."""

    url: str
    x: float
    y: float
    w: float
    h: float


def source_columns(
    patient_map: PatientMap, pictures: Sequence[TissuePicture], *, threshold: float
) -> dict[str, Mapping[str, Any]]:
    """Return the columns of each data source; ``threshold`` is the lowest value called IDC."""
    cropped = crop_to_patches(patient_map)
    rows_cols, shape = cropped.row_col, cropped.shape
    called = patient_map.probability >= threshold
    codes = (patient_map.label + 2).astype(np.uint8)
    grids = {"labels": [scatter_to_grid(codes, rows_cols, shape=shape, fill=0)]}
    if patient_map.cam is not None:
        grids["cam"] = [cam_levels(patient_map)]
    for name in ("probability", *OPTIONAL_VALUES):
        if (values := getattr(patient_map, name)) is not None:
            grids[name] = [cropped.grid(values)]
    if patient_map.flags is not None:
        numbers = flag_numbers(patient_map)
        grids["flags"] = [scatter_to_grid(numbers, rows_cols, shape=shape, fill=0)]
    errors = scatter_to_grid(outcomes(patient_map.label, called), rows_cols, shape=shape, fill=0)
    columns: dict[str, Mapping[str, Any]] = {
        "patches": patch_columns(patient_map),
        "grids": grids,
        "errors": {"errors": [errors]},
        "regions": _outline(called & patient_map.is_counted, cropped),
        "truth": _outline(patient_map.label == 1, cropped),
        "mask": _mask_outline(patient_map),
        "tissue": {
            name: [getattr(picture, name) for picture in pictures] for name in TissuePicture._fields
        },
        "bars": histogram(patient_map.probability, patient_map.label),
    }
    if (second := patient_map.second_probability) is not None:
        columns["second_bars"] = histogram(second.values, patient_map.label)
    return columns


def _outline(members: NDArray[np.bool_], cropped: PatientMap) -> Mapping[str, NDArray]:
    """Return the outline of the patches in the mask ``members``, as end points of lines in mm.

    ``cropped`` is the map after ``crop_to_patches``.
    """
    mask = scatter_to_grid(members, cropped.row_col, shape=cropped.shape, fill=False)
    return _lines(region_boundary(mask) * (cropped.cell_px * cropped.mpp / 1000))


def _mask_outline(patient_map: PatientMap) -> Mapping[str, NDArray]:
    """Return the outline of the tissue mask; it has no lines if the map has no slide."""
    slide = patient_map.slide
    if slide is None:
        return _lines(np.empty((0, 2, 2)))
    height, width = slide.tissue.shape
    px_mm = np.array([slide.width / width, slide.height / height]) * slide.mpp / 1000
    return _lines(region_boundary(slide.tissue) * px_mm + slide_corner_mm(patient_map))


def _lines(ends: NDArray) -> Mapping[str, NDArray]:
    """Convert lines, shape (N, 2, 2), to columns of end points in mm."""
    return dict(zip(("x0", "y0", "x1", "y1"), ends.reshape(-1, 4).T, strict=True))


def build_canvas(
    layers: Sequence[PageLayer], sources: Mapping[str, ColumnDataSource]
) -> tuple[figure, dict[str, list[GlyphRenderer]]]:
    """Build the canvas, without its size. Return it and a dict from layer name to renderers."""
    x_range, y_range = models.Range1d(), models.Range1d()
    canvas = figure(
        x_axis_location=None, y_axis_location=None, tools=_TOOLS, active_scroll="wheel_zoom"
    )
    canvas.update(name="canvas", width=_WIDTH, height=_HEIGHT, sizing_mode="scale_width")
    canvas.update(x_range=x_range, y_range=y_range, background_fill_color="white")
    canvas.update(min_border=0, outline_line_color=None)
    canvas.toolbar_inner = True  # a toolbar beside the frame would change the aspect ratio
    canvas.toolbar.logo = None
    canvas.grid.visible = False
    tissue = canvas.image_url(*TissuePicture._fields, anchor="top_left", source=sources["tissue"])
    renderers = {"tissue": [tissue]}
    # y increases downwards, so the first row of an image is at the top.
    for layer in layers:
        if layer.name in ("tissue", *_LINES):
            continue
        source = sources["errors" if layer.name == "errors" else "grids"]
        mapper = _color_mapper(layer)
        image = canvas.image(layer.name, 0, 0, 1, 1, color_mapper=mapper, source=source)
        renderers[layer.name] = [image]
    renderers["mask"] = _draw_lines(canvas, sources["mask"], MASK_COLOR, dash="solid")
    renderers["truth"] = _draw_lines(canvas, sources["truth"], TRUTH_COLOR, dash="5 4")
    renderers["regions"] = _draw_lines(canvas, sources["regions"], CALLED_COLOR, dash="solid")
    _add_cell_tools(canvas, sources["patches"])
    scale_bar = models.ScaleBar(range=x_range, unit="mm", location="bottom_left", bar_length=0.15)
    scale_bar.update(bar_line_width=3, label_text_font_size="13px", border_line_color=None)
    scale_bar.update(background_fill_color="white", background_fill_alpha=0.85)
    canvas.add_layout(scale_bar)
    _remove_unused_glyphs(canvas)
    return canvas, renderers


def canvas_values(
    patient_map: PatientMap, canvas: figure
) -> Iterator[tuple[Model, dict[str, Any]]]:
    """Yield the models of a canvas whose values depend on the size of a map, and these values."""
    rows, cols = crop_to_patches(patient_map).shape
    cell_mm = patient_map.cell_px * patient_map.mpp / 1000
    width, height = cols * cell_mm, rows * cell_mm
    # The ranges have the aspect ratio of the figure, so that cells are square.
    mm_per_px = _MARGIN * max(width / (_WIDTH - _TOOLBAR), height / _HEIGHT)
    across, down = mm_per_px * _WIDTH / 2, mm_per_px * _HEIGHT / 2
    middle = width / 2 + mm_per_px * _TOOLBAR / 2  # shifted, so that the toolbar covers no cell
    yield canvas.x_range, {"start": middle - across, "end": middle + across}
    yield canvas.y_range, {"start": height / 2 + down, "end": height / 2 - down}
    for renderer in canvas.renderers:
        if isinstance(renderer.glyph, models.Image):
            yield renderer.glyph, {"dw": value(width), "dh": value(height)}
        elif isinstance(renderer.glyph, models.Rect):
            for cell in (renderer.glyph, renderer.selection_glyph):
                yield cell, {"width": value(cell_mm), "height": value(cell_mm)}


def _remove_unused_glyphs(canvas: figure) -> None:
    """Remove the glyphs of muted and unselected marks to save space. A page never shows them."""
    for renderer in canvas.renderers:
        renderer.update(nonselection_glyph=None, muted_glyph=None)


def _color_mapper(layer: PageLayer) -> models.LinearColorMapper:
    """Return the colors of a layer, for values up to 1 if the layer has a color bar."""
    palette, high = list(layer.palette), 1.0
    if layer.name == "cam":  # levels of ``cam_levels``; level 0 is a cell without a patch
        palette, high = [_CLEAR, *palette[1:]], 256
    elif layer.name in _CODE_PALETTES:
        palette = _CODE_PALETTES[layer.name]
        high = len(palette)
    return models.LinearColorMapper(palette=palette, low=0, high=high, nan_color=_CLEAR)


def _draw_lines(
    canvas: figure, source: ColumnDataSource, color: str, *, dash: str
) -> list[GlyphRenderer]:
    """Draw colored lines over wide dark lines, so that the color is visible on any background."""
    ends = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1", "source": source}
    halo = canvas.segment(**ends, line_color=_HALO_COLOR, line_width=3.5, line_cap="square")
    line = canvas.segment(**ends, line_color=color, line_width=1.5, line_dash=dash)
    return [halo, line]


def _add_cell_tools(canvas: figure, patches: ColumnDataSource) -> None:
    """Add invisible cells with hover and tap tools. A selected cell gets an outline."""
    cells = canvas.rect("x_mm", "y_mm", 1, 1, fill_alpha=0, line_alpha=0, source=patches)
    cells.selection_glyph = models.Rect(x="x_mm", y="y_mm", width=1, height=1, fill_alpha=0)
    cells.selection_glyph.update(line_color=_SELECTED_COLOR, line_width=3)
    tips = {
        "probability": "@probability{0.000}",
        "smoothed": "@smoothed{0.000}",
        "not smoothed": "@unsmoothed{0.000}",
        "uncertainty": "@uncertainty{0.000}",
        "novelty": "@novelty{0.000}",
        "label": "@label_name",
        "flags": "@flag_names",
        "CAM, largest": "@cam_max{0.0000}",
        "row, col": "@row, @col",
        "x, y": "@x, @y px",
    }
    optional = {name: name for name in (*OPTIONAL_VALUES, "flags")}
    optional |= {"CAM, largest": "cam_max", "not smoothed": "unsmoothed"}
    tooltips = [tip for tip in tips.items() if optional.get(tip[0], "row") in patches.data]
    canvas.add_tools(
        models.HoverTool(renderers=[cells], tooltips=tooltips, point_policy="follow_mouse"),
        models.TapTool(renderers=[cells]),
    )


def threshold_slider() -> Slider:
    """Return the slider that sets the threshold."""
    slider = Slider(start=0, end=1, step=0.005, value=0, title=None)
    slider.update(name="threshold", show_value=False, tooltips=False, bar_color=CALLED_COLOR)
    slider.update(sizing_mode="stretch_width", margin=(0, 14))  # aligned with the histogram
    return slider


def probability_toggle(labels: Sequence[str]) -> RadioButtonGroup:
    """Return the buttons that choose which probability is used: the main or the second one."""
    toggle = RadioButtonGroup(labels=list(labels), active=0, name="by")
    toggle.update(stylesheets=[_SMALL], margin=(0, 0, 8, 0))
    return toggle


def histogram_chart(
    sources: Mapping[str, ColumnDataSource], toggle: RadioButtonGroup
) -> tuple[figure, models.Span]:
    """Return the histogram of the chosen probability, and the line at the threshold."""
    chart = figure(x_range=(0, 1), tools="", toolbar_location=None, y_axis_location=None)
    chart.update(name="histogram", height=96, sizing_mode="stretch_width", outline_line_color=None)
    chart.update(min_border=0, min_border_left=14, min_border_right=14)
    chart.y_range.update(start=0, only_visible=True)
    chart.grid.visible = False
    chart.xaxis.ticker = [0, 0.25, 0.5, 0.75, 1]
    chart.xaxis.formatter = models.NumeralTickFormatter(format="0.00")
    first = _draw_bars(chart, sources["bars"])
    if "second_bars" in sources:
        second = _draw_bars(chart, sources["second_bars"])
        for bars in second:
            bars.visible = False
        code = "first.forEach((bars) => { bars.visible = toggle.active === 0 }); "
        code += "second.forEach((bars) => { bars.visible = toggle.active === 1 })"
        arguments = {"first": first, "second": second, "toggle": toggle}
        toggle.js_on_change("active", CustomJS(args=arguments, code=code))
    line = models.Span(location=0, dimension="height", line_color="#111111", line_width=2)
    chart.add_layout(line)
    return chart, line


def _draw_bars(chart: figure, source: ColumnDataSource) -> list[GlyphRenderer]:
    """Draw histogram bars for each label that occurs, in the color of the label."""
    bars = []
    for code in (-1, 0, 1):
        if (top := f"top_{code}") in source.data:
            style = {"line_color": "white", "line_width": 0.5, "fill_color": LABEL_COLORS[code]}
            bars.append(chart.quad("left", "right", top, f"bottom_{code}", source=source, **style))
    _remove_unused_glyphs(chart)
    return bars


def reset_button(slider: Slider, toggle: RadioButtonGroup) -> tuple[models.Button, CustomJS]:
    """Return a button that resets the threshold, and its callback.

    The argument ``thresholds`` of the callback has a threshold for each button of ``toggle``.
    Pressing a button of ``toggle`` also resets the threshold.
    """
    button = models.Button(label="Reset", name="reset", width=56, height=24, stylesheets=[_SMALL])
    arguments = {"slider": slider, "toggle": toggle, "thresholds": []}
    reset = CustomJS(args=arguments, code="slider.value = thresholds[toggle.active ?? 0]")
    button.js_on_click(reset)
    toggle.js_on_change("active", reset)
    return button, reset


def layer_controls(layer: PageLayer, renderers: list[GlyphRenderer]) -> list[models.Model]:
    """Return the checkbox of a layer, and its opacity slider. Layers of lines have no slider."""
    checkbox = models.Checkbox(label=layer.title, active=layer.is_shown, name=f"{layer.name}_on")
    checkbox.update(stylesheets=[_SMALL], margin=0)
    for renderer in renderers:
        renderer.visible = layer.is_shown
        checkbox.js_link("active", renderer, "visible")
    if layer.opacity is None:
        return [checkbox]
    opacity = Slider(start=0, end=1, step=0.05, value=layer.opacity, title=None)
    opacity.update(name=f"{layer.name}_opacity", show_value=False, tooltips=False)
    opacity.update(sizing_mode="stretch_width", bar_color="#9fb3c8")
    for renderer in renderers:
        renderer.glyph.global_alpha = layer.opacity
        code = "renderer.glyph.global_alpha = {value: slider.value}; "
        code += f"const colors = document.getElementById('colors-{layer.name}'); "
        code += "if (colors) colors.style.opacity = slider.value"  # the legend on the page
        arguments = {"renderer": renderer, "slider": opacity}
        opacity.js_on_change("value", CustomJS(args=arguments, code=code))
    return [checkbox, opacity]
